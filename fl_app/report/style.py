"""The style sheet of ``report.html``: one column, light and dark, readable on a telephone."""

CSS = """
:root {
  color-scheme: light dark;
  --ink: #22262b; --soft: #565c65; --page: #fbfbfa; --card: #ffffff; --line: #dfe2e6;
  --accent: #0068a8; --ok: #00694e; --ok-back: #e3f3ed; --bad: #9b2226; --bad-back: #fbe9e7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e7e9ec; --soft: #a9b0ba; --page: #16181b; --card: #1f2226; --line: #363b42;
    --accent: #7cc0ef; --ok: #8fdcbd; --ok-back: #16332a; --bad: #ffb4a8; --bad-back: #3d1c1a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 56rem;
  color: var(--ink); background: var(--page);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 1rem; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 0.75rem; }
p { max-width: 42rem; }
.note { color: var(--soft); font-size: 0.9rem; }
.verdict {
  margin: 1rem 0 1.5rem; padding: 0.7rem 1rem; border-radius: 0.5rem;
  border-left: 0.35rem solid; overflow-wrap: anywhere;
}
.verdict.ok { color: var(--ok); background: var(--ok-back); }
.verdict.failed { color: var(--bad); background: var(--bad-back); }
.verdict ul { margin: 0.4rem 0 0; padding-left: 1.2rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.75rem 0; }
.facts div { flex: 1 1 6rem; border-top: 2px solid var(--line); padding-top: 0.4rem; }
.facts dt { color: var(--soft); font-size: 0.85rem; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
figure { margin: 1.25rem 0; padding: 0.75rem; background: #ffffff;
  border: 1px solid var(--line); border-radius: 0.5rem; overflow-x: auto; }
figure img { display: block; width: 100%; min-width: 36rem; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; }
th, td { padding: 0.45rem 0.6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
tr.main td { font-weight: 700; color: var(--accent); }
td.value { width: 60%; overflow-wrap: anywhere; }
details > .wide { margin-top: 0.4rem; }
details { margin: 0.75rem 0; border: 1px solid var(--line); border-radius: 0.5rem;
  background: var(--card); padding: 0.6rem 1rem; }
summary { cursor: pointer; font-weight: 600; }
code { font: 0.88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { body { max-width: none; padding: 0; } details { border: 0; padding: 0; } }
"""
