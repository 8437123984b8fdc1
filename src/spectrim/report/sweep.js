// The page of a sweep: scores against size, differences in pairs, which score, half and control is shown, the table.
"use strict";

(() => {
  const { css, safe, figure, percent, h } = Theme;
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const $ = (id) => document.getElementById(id);
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const small = () => window.matchMedia("(max-width: 640px)").matches;
  const state = { score: 0, half: "all", other: data.against[0], hidden: new Set() };
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star"];
  const DASHES = ["dash", "dot", "dashdot"];
  const COLORS = 7; // e0 to e6 of the style sheet

  // Controls are grey and broken; a method has a colour, and a mark that tells it from the next one of that colour.
  const looks = new Map();
  {
    let methods = 0,
      controls = 0;
    for (const m of data.methods) {
      if (m.control) looks.set(m.name, { color: "e6", dash: DASHES[controls % 3], symbol: SYMBOLS[controls++ % 3] + "-open" });
      else looks.set(m.name, { color: `e${methods % (COLORS - 1)}`, dash: "solid", symbol: SYMBOLS[Math.floor(methods++ / (COLORS - 1)) % 6] });
    }
  }
  const shown = () => data.methods.filter((m) => !state.hidden.has(m.name));
  const score = () => data.scores[state.score];
  const found = (cell) => (cell.scores[score().name] || {})[state.half] || null;
  const cellsOf = (name) => data.cells.filter((c) => c.method === name && found(c) && c.kept !== null);
  // Side by side within one rate: what is drawn is moved by a share of the distance between rates, at most.
  const aside = (i, count, width) => (count > 1 ? (i / (count - 1) - 0.5) * width : 0);

  function words(cell) {
    const f = found(cell),
      lines = [`<b>${safe(cell.method)}</b>${cell.rate ? " at " + percent(cell.rate) : ""}`];
    lines.push(`${safe(score().name)} ${f.text}`);
    lines.push(`${percent(cell.kept, 2)} of the numbers left`);
    const gain = f.gains[state.other];
    if (gain) lines.push(`over ${safe(state.other)}: ${gain.text}`);
    lines.push(`${figure(cell.params, 4)} stored, ${figure(cell.macs_executed, 3)} MACs an item`);
    if (cell.flag) lines.push(safe(cell.flag));
    return lines.join("<br>");
  }

  function line(method, x, y, errors, text, solid) {
    const look = looks.get(method.name),
      color = css(look.color);
    return {
      type: "scatter",
      mode: "lines+markers",
      name: method.name,
      x,
      y,
      text,
      hovertemplate: "%{text}<extra></extra>",
      line: { color, width: method.control ? 1.5 : 2, dash: look.dash },
      marker: { color, size: 8, symbol: solid || look.symbol, line: { width: 1.5, color } },
      error_y: Object.assign({ type: "data", color, thickness: 1.2, width: 0 }, errors),
    };
  }

  // What no other point beats in both size and score: the best that was measured, whoever made it.
  function frontier() {
    const sign = score().better === "higher" ? 1 : -1;
    const points = shown()
      .flatMap((m) => cellsOf(m.name))
      .map((c) => [c.kept, found(c).value])
      .sort((a, b) => a[0] - b[0] || sign * (b[1] - a[1]));
    const out = [];
    for (const p of points) if (!out.length || sign * (p[1] - out[out.length - 1][1]) > 0) out.push(p);
    return {
      type: "scatter",
      mode: "lines",
      name: "frontier",
      x: out.map((p) => p[0]),
      y: out.map((p) => p[1]),
      hoverinfo: "skip",
      line: { color: css("spike-cut"), width: 9 },
      opacity: 0.55,
    };
  }

  function drawPareto() {
    const list = shown(),
      width = Math.min(0.03, 0.35 * gap(), 0.005 * list.length);
    const traces = list.map((m, i) => {
      const cells = cellsOf(m.name);
      return line(
        m,
        cells.map((c) => c.kept + aside(i, list.length, width)),
        cells.map((c) => found(c).value),
        { array: cells.map((c) => found(c).error || 0) },
        cells.map(words),
      );
    });
    const dense = found(data.dense),
      { chance, better } = score();
    const layout = Theme.layout({ l: 58, r: small() ? 16 : 64, t: 14, b: 48 });
    layout.xaxis = Theme.axis("share of the numbers that is left", { tickformat: ".0%", range: range(traces) });
    layout.yaxis = Theme.axis(safe(score().name), {});
    const levels = [[dense.value, "dense", "solid"]];
    if (chance !== null) levels.push([chance, "chance", "2px,3px"]);
    layout.shapes = levels.map(([y, , dash]) => Theme.level(y, Theme.stroke("law", 1.2, dash)));
    layout.annotations = levels.map(([y, text]) =>
      Theme.note(1, y, text, small() ? "right" : "left", "ink", {
        xref: "paper",
        yref: "y",
        xshift: small() ? -4 : 6,
        yanchor: small() ? "bottom" : "middle",
      }),
    );
    // A level that nothing is near would be left out of the picture: a mark that is not seen makes room for it.
    const room = { type: "scatter", mode: "markers", x: levels.map(() => layout.xaxis.range[0]), y: levels.map((l) => l[0]), opacity: 0, hoverinfo: "skip", name: "levels" };
    $("direction").textContent = `For ${score().name}, ${better} is better; the pale band joins the best of all.`;
    return Plotly.react($("pareto"), [frontier(), ...traces, room], layout, Theme.config);
  }
  const gap = () => {
    const rates = data.rates.slice().sort((a, b) => a - b);
    return rates.length > 1 ? Math.min(...rates.slice(1).map((r, i) => r - rates[i])) : 0.1;
  };
  function range(traces) {
    const x = traces.flatMap((t) => t.x);
    if (!x.length) return [0, 1];
    const [low, high] = [Math.min(...x) - 0.03, Math.max(...x) + 0.03],
      more = Math.max(0, 0.3 - (high - low)) / 2; // one rate alone is no reason to look at it through a lens
    return [low - more, high + more];
  }

  function drawGains() {
    const list = shown().filter((m) => m.name !== state.other),
      step = gap();
    const traces = list.map((m, i) => {
      const cells = cellsOf(m.name).filter((c) => found(c).gains[state.other]),
        gains = cells.map((c) => found(c).gains[state.other]);
      const trace = line(
        m,
        cells.map((c) => c.rate + aside(i, list.length, 0.72 * step)),
        gains.map((g) => g.value),
        { symmetric: false, array: gains.map((g) => (g.high === null ? 0 : g.high - g.value)), arrayminus: gains.map((g) => (g.low === null ? 0 : g.value - g.low)) },
        cells.map(words),
        gains.map((g) => looks.get(m.name).symbol.replace("-open", "") + (g.side ? "" : "-open")),
      );
      return Object.assign(trace, { mode: "markers" });
    });
    const layout = Theme.layout({ l: 58, r: 16, t: 14, b: 48 });
    const rates = data.rates;
    layout.xaxis = Theme.axis("rate: share of the entries that was to go", {
      tickvals: rates,
      ticktext: rates.map((r) => percent(r)),
      range: [Math.min(...rates) - 0.55 * step, Math.max(...rates) + 0.55 * step],
      showgrid: false,
    });
    layout.yaxis = Theme.axis(`${safe(score().name)}, better by`, {});
    layout.shapes = [Theme.level(0, Theme.stroke("law", 1.2))];
    const sorted = rates.slice().sort((a, b) => a - b);
    sorted.forEach((r, i) => i % 2 === 0 && layout.shapes.push(Theme.band(r - step / 2, r + step / 2, css("cut"))));
    $("other").textContent = state.other || "nothing";
    return Plotly.react($("gains"), traces, layout, Theme.config);
  }

  function sample(look) {
    const ns = "http://www.w3.org/2000/svg",
      svg = document.createElementNS(ns, "svg");
    svg.setAttribute("viewBox", "0 0 26 12");
    svg.setAttribute("aria-hidden", "true");
    const rule = document.createElementNS(ns, "path");
    rule.setAttribute("d", "M0 6h26");
    const open = look.symbol.endsWith("-open"),
      mark = document.createElementNS(ns, "path");
    const shape = { circle: "M13 2a4 4 0 1 0 .01 0z", square: "M9.500 2.500h7v7h-7z", diamond: "M13 1l5 5-5 5-5-5z", "triangle-up": "M13 1.500l5 8.500h-10z", cross: "M11.500 1.500h3v3h3v3h-3v3h-3v-3h-3v-3h3z", star: "M13 0l1.500 4 4.300.200-3.400 2.600 1.200 4.200L13 8.600 9.400 11l1.200-4.200L7.200 4.200l4.300-.200z" };
    mark.setAttribute("d", shape[look.symbol.replace("-open", "")]);
    rule.style.cssText = `stroke:var(--${look.color});stroke-width:2;stroke-dasharray:${{ solid: "none", dash: "5 3", dot: "2 2", dashdot: "5 2 1 2" }[look.dash]}`;
    mark.style.cssText = `stroke:var(--${look.color});stroke-width:1.2;fill:var(--${open ? "card" : look.color})`;
    svg.append(rule, mark);
    return svg;
  }
  for (const m of data.methods) {
    const button = h("button", { type: "button", "aria-pressed": "true", title: m.config }, sample(looks.get(m.name)), m.name);
    button.addEventListener("click", () => {
      state.hidden.has(m.name) ? state.hidden.delete(m.name) : state.hidden.add(m.name);
      button.setAttribute("aria-pressed", String(!state.hidden.has(m.name)));
      draw();
    });
    $("picks").append(button);
  }

  function draw() {
    return Promise.all([drawPareto(), drawGains()]).then(() => {
      document.body.dataset.drawn = `${score().name}:${state.half}:${state.other}:${shown().length}`;
    });
  }
  for (const key of ["score", "half", "other"]) {
    all(`[data-${key}]`).forEach((button) =>
      button.addEventListener("click", () => {
        state[key] = key === "score" ? +button.dataset.score : button.dataset[key];
        all(`[data-${key}]`).forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
        all("[data-table]").forEach((table) => (table.hidden = +table.dataset.table !== state.score));
        draw();
      }),
    );
  }

  // The table: the dense model first, then the order of the sweep, until a heading is clicked.
  const body = $("table").tBodies[0],
    rows = Array.from(body.rows);
  const sorted = { by: null, up: true };
  const value = (row, key) => {
    const cell = +row.dataset.index < 0 ? data.dense : data.cells[+row.dataset.index];
    const headline = (cell.scores[data.headline] || { all: { gains: {} } }).all;
    if (key.startsWith("score:")) return (((cell.scores[key.slice(6)] || {}).all || {}).value ?? null);
    if (key === "gain") return (headline.gains["global magnitude"] || {}).value ?? null;
    return key === "seconds" ? cell.seconds[0] : cell[key];
  };
  all("[data-sort]").forEach((button) =>
    button.addEventListener("click", () => {
      const key = button.dataset.sort;
      sorted.up = sorted.by === key ? !sorted.up : ["method", "rate"].includes(key);
      sorted.by = key;
      all("th[aria-sort]").forEach((th) => {
        const mine = th.querySelector("button") === button;
        th.setAttribute("aria-sort", !mine ? "none" : sorted.up ? "ascending" : "descending");
      });
      const compare = (a, b) => {
        const [u, v] = [a, b].map((row) => value(row, key));
        if (u === null || v === null) return (u === null) - (v === null); // no figure: always last
        return (u < v ? -1 : u > v ? 1 : 0) * (sorted.up ? 1 : -1);
      };
      body.append(...rows.slice().sort(compare));
    }),
  );

  Theme.shades($("theme"), draw);
  draw().then(() => (document.body.dataset.ready = "yes"));
})();
