"""How the page of `sfactory report` looks: one style sheet, light and dark, no font and no picture from elsewhere."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --back: #f6f8fa; --card: #fff; --ink: #1f2328; --quiet: #656d76; --rule: #d8dee4;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9; --c6: #8b8f94;
  --good: #1a7f37; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --card: #161b22; --ink: #e6edf3; --quiet: #8d96a0;
  --rule: #30363d; --c0: #58a6ff; --c1: #ff8c42; --c2: #3fcf9e; --c3: #e39bc4; --c4: #f2b632; --c5: #8fd3ff;
  --good: #3fb950; --bad: #f85149; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 14px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 8px; }
p { margin: 4px 0; }
header > p:first-of-type, .quiet, .none { color: var(--quiet); }
.none { padding: 30px; text-align: center; }
.word { border-radius: 10px; color: #fff; font-weight: 600; padding: 1px 10px; margin-right: 4px; }
.good { background: var(--good); } .bad { background: var(--bad); } .on { background: var(--c0); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 16px; }
.tile, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.tile { padding: 10px 14px; display: flex; flex-direction: column; }
.tile b { font-size: 24px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span, .tile small { color: var(--quiet); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 12px; }
figure { margin: 0; padding: 10px 12px 6px; min-width: 0; break-inside: avoid; }
.wide { grid-column: span 2; grid-row: span 2; }
@media (max-width: 1090px) { .wide { grid-column: 1 / -1; grid-row: auto; } }
a { color: var(--c0); }
figcaption { display: flex; flex-wrap: wrap; gap: 0 12px; align-items: baseline; }
.key { color: var(--quiet); font-size: 12px; white-space: nowrap; } .key b { color: var(--ink); }
.key i { display: inline-block; width: 9px; height: 9px; border-radius: 2px; margin-right: 4px; background: var(--k); }
svg, video { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font-size: 11px; font-family: inherit; }
.grid, .axis { stroke: var(--rule); fill: none; }
.c0 { --k: var(--c0); } .c1 { --k: var(--c1); } .c2 { --k: var(--c2); } .c3 { --k: var(--c3); }
.c4 { --k: var(--c4); } .c5 { --k: var(--c5); } .c6 { --k: var(--c6); }
.line { fill: none; stroke: var(--k, var(--c6)); stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round; }
.band { fill: var(--k); opacity: .15; } .share { fill: var(--k, var(--c6)); opacity: .8; } .bar { fill: var(--k); }
.c6.share { opacity: .3; }
.strip { fill: transparent; } .strip:hover { fill: var(--quiet); opacity: .12; }
.scroll, pre { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--rule); font-size: 13px; }
th, td { text-align: left; padding: 3px 14px; border-bottom: 1px solid var(--rule); }
td { font-variant-numeric: tabular-nums; }
th { color: var(--quiet); font-weight: 500; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 12px; max-height: 420px;
  font-size: 12px; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--quiet); }
"""
