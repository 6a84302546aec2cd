"""Methods of the tests: none of the project's own."""
