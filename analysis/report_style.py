"""The style sheet of the report: light and dark, narrow and wide, screen and paper."""

CSS = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --sunken: #f3f5f7; --ink: #15181d; --quiet: #566070; --line: #d9dee5; --accent: #1a5fb4;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
@media (prefers-color-scheme: dark) {
  :root { --ground: #131519; --sunken: #1d2026; --ink: #e9ebee; --quiet: #a0a9b6; --line: #343b45; --accent: #82b4f7; }
  .plot svg { filter: invert(0.92) hue-rotate(180deg); }
  .picture { background: #ffffff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); }
main { max-width: 80rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 0.75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 3rem 0 0.75rem; }
h2 { padding-top: 1rem; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
p, ul { max-width: 46rem; margin: 0.4rem 0; }
ul { padding-left: 1.2rem; }
header p + p { color: var(--quiet); }
.scroll, figure, pre { overflow-x: auto; }
.scroll {
  --cover: var(--ground) 1.5rem, transparent;
  --shade: rgb(128 128 128 / 0.35), transparent;
  margin: 1rem 0;
  background:
    linear-gradient(to right, var(--cover)) left / 3rem 100% local,
    linear-gradient(to left, var(--cover)) right / 3rem 100% local,
    linear-gradient(to right, var(--shade)) left / 0.75rem 100%,
    linear-gradient(to left, var(--shade)) right / 0.75rem 100%;
  background-repeat: no-repeat;
}
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.875rem; }
caption { text-align: left; font-weight: 600; padding-bottom: 0.4rem; }
th, td { text-align: left; vertical-align: baseline; padding: 0.35rem 1rem 0.35rem 0; white-space: nowrap; }
thead th { color: var(--quiet); font-weight: 500; vertical-align: bottom; border-bottom: 1px solid var(--quiet); }
tbody th { font-weight: 600; }
tbody tr { border-bottom: 1px solid var(--line); }
figure { margin: 1.5rem 0; }
figure svg { display: block; width: 100%; min-width: 30rem; height: auto; }
.plot { max-width: 44rem; }
.picture { max-width: 56rem; }
svg text { font-family: inherit !important; }
pre { background: var(--sunken); border-radius: 6px; padding: 0.9rem 1rem; font-size: 0.85rem; line-height: 1.45; }
@media print {
  :root { color-scheme: light; font-size: 10pt; }
  :root { --ground: #ffffff; --sunken: #ffffff; --ink: #000000; --quiet: #333333; --line: #bbbbbb; }
  @page { margin: 15mm; }
  main { max-width: none; padding: 0; }
  .plot svg { filter: none; }
  .scroll, figure, pre { overflow: visible; background: none; }
  table { font-size: 7.5pt; }
  th, td { padding-right: 0.6em; white-space: normal; }
  pre { border: 1px solid var(--line); white-space: pre-wrap; }
  figure, tr, pre { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  h2 { margin-top: 1.5rem; }
  figure svg { min-width: 0; }
}
"""
