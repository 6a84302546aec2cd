"""Finished run folders in, what a paper shows out: tables and figures. Reads files only, never trains."""
