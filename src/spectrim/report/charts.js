// The charts. Each function takes data and draws into one element; none of them knows the table or the panel.
"use strict";

const Charts = (() => {
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  // Plotly reads a little markup in its labels; names of layers must stay what they are.
  const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const figure = (x, digits = 3) => x === null || x === undefined ? "–" : Number(x).toLocaleString("en", { maximumSignificantDigits: digits });
  const config = { displayModeBar: false, responsive: true, displaylogo: false, scrollZoom: false, doubleClick: "reset" };
  const small = () => window.matchMedia("(max-width: 640px)").matches;

  function base(extra) {
    const axis = { gridcolor: css("line"), linecolor: css("line"), zeroline: false, tickcolor: css("line"), tickfont: { color: css("soft"), size: 11 }, automargin: true };
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: false,
      font: { family: css("sans"), size: 12, color: css("soft") }, margin: { l: 48, r: 16, t: 26, b: 40 },
      hoverlabel: { bgcolor: css("ink"), bordercolor: css("ink"), font: { color: css("paper"), size: 12, family: css("sans") }, align: "left" },
    };
    return [Object.assign(layout, extra), axis];
  }
  const label = (text, size = 11.5) => ({ text, font: { size, color: css("soft") } });

  // Linear up to the edge, logarithmic above: the same map as `height` in view.py.
  const height = (ratio) => ratio <= 1 ? ratio : 1 + Math.log(ratio);

  function ticks(layers, each) {
    const vals = [], text = [], borders = [];
    const names = layers.map((x) => x.short);
    if (layers.length <= 10) return { vals: layers.map((_, i) => i), text: names.map((n) => safe(n.length > 22 ? "…" + n.slice(-21) : n)), borders, title: "", angle: Math.max(...names.map((n) => Math.min(n.length, 22))) * 7 > each ? -30 : 0 };
    let start = 0;
    const words = new Set(layers.filter((x) => x.block).map((x) => x.block.split(" ")[0]));
    for (let i = 1; i <= layers.length; i++) {
      if (i < layers.length && layers[i].group === layers[start].group) continue;
      const group = layers[start].group;
      if (start) borders.push(start - 0.5);
      if (group) { vals.push((start + i - 1) / 2); text.push(safe(words.size === 1 && layers[start].byBlock ? group.split(" ")[1] : group)); }
      start = i;
    }
    const byBlock = layers[0].byBlock, room = Math.max(1, Math.ceil(vals.length / (byBlock ? small() ? 12 : 40 : 60)));
    const title = byBlock ? (words.size === 1 ? [...words][0] : "") : "";
    return { vals: vals.filter((_, i) => i % room === 0), text: text.filter((_, i) => i % room === 0), borders: vals.length <= 80 ? borders : [], title, angle: byBlock ? 0 : -35 };
  }

  function glance(el, data, order, open) {
    const byRole = order === "role";
    let layers = data.layers.map((x) => Object.assign({}, x, { byBlock: !byRole, group: byRole ? x.short.replace(/^.*?\d+\./, "") : x.block }));
    if (byRole) {
      const first = new Map();
      layers.forEach((x) => first.has(x.role) || first.set(x.role, first.size));
      layers = layers.map((x) => [first.get(x.role), x]).sort((a, b) => a[0] - b[0] || a[1].index - b[1].index).map((x) => x[1]);
    }
    const cells = data.map.cells, plan = data.plan, x = layers.map((_, i) => i);
    let top = cells * 2, most = 1e-9, mostSpike = 1e-9;
    const share = (layer, k) => k / (layer.values || 1);
    for (const layer of layers) for (const [cell, k] of layer.views.length ? layer.views[0].map : []) {
      top = Math.max(top, cell + 2);
      if (cell < cells) most = Math.max(most, share(layer, k)); else mostSpike = Math.max(mostSpike, share(layer, k));
    }
    const z = [], text = [];
    for (let row = 0; row < top; row++) {
      z.push(new Array(layers.length).fill(null));
      text.push(layers.map((layer) => `<b>${safe(layer.short)}</b>` + (layer.views.length ? `<br>${figure(layer.spikes)} spikes of ${figure(layer.values, 6)}` : `<br>${safe(layer.note || "no verdict")}`)));
    }
    const ratio = (y) => y <= 1 ? y : Math.exp(y - 1);
    layers.forEach((layer, i) => {
      for (const [cell, k] of layer.views.length ? layer.views[0].map : []) {
        const dense = cell < cells ? share(layer, k) / most : share(layer, k) / mostSpike;
        z[cell][i] = cell < cells ? -(0.12 + 0.88 * Math.sqrt(dense)) : 0.35 + 0.65 * Math.sqrt(dense);
        text[cell][i] += `<br>${figure(k)} at ${figure(ratio(cell / cells), 2)} to ${figure(ratio((cell + 1) / cells), 2)} edges`;
      }
    });
    const mix = (a, b, t) => { const p = (h) => [1, 3, 5].map((i) => parseInt(h.slice(i, i + 2), 16)); const [u, v] = [p(a), p(b)]; return "rgb(" + u.map((c, i) => Math.round(c + (v[i] - c) * t)).join(",") + ")"; };
    const card = css("card"), bulk = css("bulk"), spike = css("spike");
    const scale = [[0, mix(bulk, css("ink"), 0.35)], [0.25, bulk], [0.49, mix(card, bulk, 0.12)], [0.5, card], [0.51, mix(card, spike, 0.15)], [0.7, mix(card, spike, 0.6)], [1, spike]];
    const gap = layers.length <= 60 ? 3 : layers.length <= 130 ? 1 : 0, room = Math.max(el.clientWidth - 70, 100) / layers.length;
    const wide = Math.max(0.5, 1 - gap / room);
    const traces = [{
      type: "heatmap", x, y: z.map((_, i) => (i + 0.5) / cells), z, text, hovertemplate: "%{text}<extra></extra>", zmin: -1, zmax: 1, colorscale: scale,
      showscale: false, xgap: gap, ygap: 0,
    }];
    const cut = { x: [], y: [] };
    layers.forEach((layer, i) => {
      const v = layer.views[0];
      if (!v || !v.kept || !v.edge) return;
      const y = Math.min(height(v.kept.threshold / v.edge), top / cells);
      cut.x.push(i - wide / 2, i + wide / 2, null); cut.y.push(y, y, null);
    });
    if (cut.x.length) traces.push({ type: "scatter", mode: "lines", x: cut.x, y: cut.y, line: { color: css("law"), width: 2 }, hoverinfo: "skip" });
    // The strip below: shares of the directions, or of the entries where zeros are set.
    const zeros = plan && plan.goal === "zeros";
    const part = (name, color, f) => traces.push({
      type: "bar", x, y: layers.map(f), yaxis: "y2", marker: { color: css(color), line: { width: 0 } }, width: wide,
      customdata: layers.map((l) => safe(l.short)), hovertemplate: `<b>%{customdata}</b><br>${name} %{y:.1%}<extra></extra>`,
    });
    const d = (l) => l.plan && l.plan.directions;
    const of = (l, key, none) => l.views.length ? (d(l) ? d(l)[key] / l.values : none(l)) : 0;
    const spikes = (l) => (l.spikes || 0) / l.values, rest = (l) => 1 - spikes(l), nil = () => 0;
    if (zeros) {
      part("entries kept", "bulk", (l) => l.plan ? 1 - (l.plan.zero_share || 0) : 0);
      part("entries set to zero", "bulk-cut", (l) => l.plan ? l.plan.zero_share || 0 : 0);
    } else {
      part(plan ? "spikes kept" : "spikes", "spike", (l) => of(l, "spikes_kept", spikes));
      if (plan) part("spikes cut", "spike-cut", (l) => of(l, "spikes_cut", nil));
      part(plan ? "bulk kept" : "bulk", "bulk", (l) => of(l, "bulk_kept", rest));
      if (plan) part("bulk cut", "bulk-cut", (l) => of(l, "bulk_cut", nil));
    }
    const [layout, axis] = base({ barmode: "stack", bargap: 0, margin: { l: 52, r: 14, t: 12, b: 44 } });
    const t = ticks(layers, room), range = [-0.6, layers.length - 0.4];
    const marks = [0, 0.5, 1, 2, 5, 10, 20, 50].filter((r) => height(r) <= top / cells - 0.05);
    layout.xaxis = Object.assign({}, axis, { range, tickvals: t.vals, ticktext: t.text, showgrid: false, fixedrange: true, anchor: "y2", tickangle: t.angle, title: Object.assign(label(t.title), { standoff: 4 }), ticks: "" });
    layout.yaxis = Object.assign({}, axis, { domain: [0.25, 1], range: [0, top / cells], tickvals: marks.map(height), ticktext: marks.map(String), showgrid: false, fixedrange: true, title: label("singular value / edge") });
    layout.yaxis2 = Object.assign({}, axis, { domain: [0, 0.185], range: [0, 1], tickvals: [0, 1], ticktext: ["0", "100 %"], showgrid: false, fixedrange: true, title: label(zeros ? "entries" : small() ? "" : "directions") });
    layout.shapes = [{ type: "line", xref: "x", x0: range[0], x1: range[1], y0: 1, y1: 1, line: { color: css("law"), width: 1, dash: "2px,3px" } }]
      .concat(t.borders.map((b) => ({ type: "line", x0: b, x1: b, yref: "paper", y0: 0, y1: 1, layer: "below", line: { color: css("line"), width: 1 } })));
    el.order = layers.map((l) => l.index);
    el.fixed = layout.shapes;
    return Plotly.react(el, traces, layout, config).then(() => {
      el.removeAllListeners("plotly_click");
      el.on("plotly_click", (e) => open(el.order[Math.round(e.points[0].x)]));
      return { cut: cut.x.length > 0, zeros };
    });
  }

  function mark(el, index) {
    const i = el.order ? el.order.indexOf(index) : -1;
    const box = { type: "rect", x0: i - 0.5, x1: i + 0.5, yref: "paper", y0: 0, y1: 1, line: { color: css("spike"), width: 1.5 }, fillcolor: "rgba(0,0,0,0)" };
    if (el.fixed) Plotly.relayout(el, { shapes: i < 0 ? el.fixed : el.fixed.concat([box]) });
  }

  // Where a cut is drawn: only in the basis in which the plan makes it.
  const cutOf = (layer, view) => layer.plan && view.kept && (layer.views.length === 1 || layer.plan.basis === view.basis) ? view.kept : null;
  const isFar = (view) => view.edge && view.largest > 2.6 * view.edge;

  function spectrum(el, layer, view, near) {
    const h = view.hist, cut = cutOf(layer, view), n = h.counts.length;
    const centers = h.counts.map((_, i) => h.start + (i + 0.5) * h.width);
    const color = centers.map((c, i) => {
      const side = view.edge !== null && i >= h.bulk_bars ? "spike" : "bulk";
      return css(cut && c < cut.threshold ? side + "-cut" : side);
    });
    const edges = (s) => view.edge ? `, ${figure(s / view.edge)} × edge` : "";
    const traces = [{
      type: "bar", name: "values", x: centers, y: h.counts, width: h.width, marker: { color, line: { color: css("card"), width: n > 50 ? 0.5 : 1 } },
      customdata: centers.map((c) => `${figure(c - h.width / 2)} to ${figure(c + h.width / 2)}`), hovertemplate: "%{y} values from %{customdata}<extra></extra>",
    }];
    if (view.law) traces.push({ type: "scatter", mode: "lines", name: "law", x: view.law.s, y: view.law.count, line: { color: css("law"), width: 2 }, hovertemplate: "noise law: %{y:.3~g} a bar<extra></extra>" });
    const total = view.values, k = view.spike_values.length;
    traces.push({
      type: "scatter", mode: "markers", name: "bulk rug", x: view.bulk_values, y: view.bulk_values.map(() => 0.5), yaxis: "y2", customdata: view.bulk_index.map((i) => i + 1),
      marker: { symbol: "line-ns", size: 8, line: { width: 1, color: view.bulk_values.map((s) => css(cut && s < cut.threshold ? "bulk-cut" : "bulk")) } },
      hovertemplate: `value %{customdata} of ${total}: %{x:.4~g}<extra></extra>`,
    });
    traces.push({
      type: "scatter", mode: "markers", name: "spikes", x: view.spike_values, y: view.spike_values.map(() => 0.5), yaxis: "y2",
      customdata: view.spike_values.map((s, i) => `spike ${i + 1} of ${k}: ${figure(s, 4)}${edges(s)}${cut ? (i < cut.rank ? ", kept" : ", cut") : ""}`),
      marker: { size: 7, color: css("spike"), opacity: k > 40 ? 0.75 : 1, symbol: view.spike_values.map((_, i) => cut && i >= cut.rank ? "circle-open" : "circle"), line: { width: 1, color: css(k > 40 ? "spike" : "card") } },
      hovertemplate: "%{customdata}<extra></extra>",
    });
    const [layout, axis] = base({ bargap: 0, barmode: "overlay" });
    const low = Math.min(h.start, view.law ? view.law.s[0] : h.start), far = isFar(view);
    const high = far && near ? 2.2 * view.edge : Math.max(view.largest || 0, view.edge || 0);
    const pad = (high - low) * 0.04 || 1, range = [low - pad < 0 && low >= 0 ? -pad * 0.6 : low - pad, high + pad];
    const peak = Math.max(1, ...h.counts, ...(view.law ? view.law.count : [])) * 1.2;
    layout.xaxis = Object.assign({}, axis, { range, anchor: "y2", showgrid: false, title: label("singular value"), fixedrange: true });
    layout.yaxis = Object.assign({}, axis, { domain: [0.12, 1], range: [0, peak], title: label("values a bar"), nticks: 5, fixedrange: true });
    layout.yaxis2 = Object.assign({}, axis, { domain: [0, 0.09], range: [0, 1], visible: false, fixedrange: true });
    layout.shapes = []; layout.annotations = [];
    const note = (x, y, text, anchor, color) => layout.annotations.push({ x, y, yref: "paper", text, showarrow: false, xanchor: anchor, yanchor: "bottom", bgcolor: y < 1 ? css("card") : undefined, borderpad: 1, font: { size: 11.5, color: css(color) } });
    if (cut) {
      const t = cut.threshold;
      layout.shapes.push({ type: "rect", yref: "paper", x0: range[0], x1: Math.min(t, range[1]), y0: 0, y1: 1, fillcolor: css("cut"), line: { width: 0 }, layer: "below" });
      layout.shapes.push({ type: "line", yref: "paper", x0: t, x1: t, y0: 0, y1: 1, line: { color: css("law"), width: 1.5 } });
      const left = (t - range[0]) / (range[1] - range[0]) > 0.2;
      if (t < range[1]) note(t, 0.925, left ? `← ${figure(total - cut.rank, 6)} cut` : `${figure(cut.rank, 6)} kept →`, left ? "right" : "left", "ink");
    }
    if (view.edge !== null) {
      if (view.edge_interval) layout.shapes.push({ type: "rect", yref: "paper", x0: view.edge_interval[0], x1: view.edge_interval[1], y0: 0, y1: 1, fillcolor: css("spike"), opacity: 0.1, line: { width: 0 }, layer: "below" });
      layout.shapes.push({ type: "line", yref: "paper", x0: view.edge, x1: view.edge, y0: 0, y1: 1, line: { color: css("spike"), width: 1.5, dash: "5px,3px" } });
      note(view.edge, 1.005, `edge ${figure(view.edge)}`, (view.edge - range[0]) / (range[1] - range[0]) > 0.8 ? "right" : "center", "spike");
      const beyond = view.spike_values.filter((s) => s > range[1]).length;
      if (beyond) note(range[1], 1.005, `${beyond} more, up to ${figure(view.largest)} →`, "right", "soft");
    }
    return Plotly.react(el, traces, layout, config);
  }

  // 1, 2, 5, 10 ...: Plotly's own labels on a logarithmic axis leave out the power of ten.
  function decades(low, high) {
    const out = [];
    for (let e = Math.floor(Math.log10(low)) - 1; e <= Math.ceil(Math.log10(high)); e++) for (const m of [1, 2, 5]) out.push(Number(`${m}e${e}`));
    return high / low > 300 ? out.filter((_, i) => i % 3 === 0) : out;
  }

  function scree(el, layer, view, near) {
    const cut = cutOf(layer, view), k = view.spike_values.length, total = view.values;
    const positive = view.bulk_values.map((s) => s > 0 ? s : null);
    const traces = [];
    if (view.law) traces.push({ type: "scatter", mode: "lines", name: "law", x: view.bulk_index.map((i) => i + 1), y: view.law.expected.map((s) => s > 0 ? s : null), line: { color: css("law"), width: 2 }, hovertemplate: "noise law: %{y:.4~g}<extra></extra>" });
    traces.push({
      type: "scatter", mode: "markers", name: "bulk", x: view.bulk_index.map((i) => i + 1), y: positive, marker: { size: total > 150 ? 4 : 6, color: view.bulk_index.map((i) => css(cut && i >= cut.rank ? "bulk-cut" : "bulk")) },
      hovertemplate: `value %{x} of ${total}: %{y:.4~g}<extra></extra>`,
    });
    traces.push({
      type: "scatter", mode: "markers", name: "spikes", x: view.spike_values.map((_, i) => i + 1), y: view.spike_values,
      marker: { size: 7, color: css("spike"), symbol: view.spike_values.map((_, i) => cut && i >= cut.rank ? "circle-open" : "circle"), line: { width: 1, color: css(k > 40 ? "spike" : "card") } },
      hovertemplate: "spike %{x}: %{y:.4~g}<extra></extra>",
    });
    const [layout, axis] = base({});
    const floor = Math.min(...positive.filter((s) => s !== null), view.edge || Infinity, ...view.spike_values);
    const low = Math.max(floor, (view.largest || 1) * 1e-3), first = Math.min(total, Math.max(20, 2 * k, cut ? Math.round(1.3 * cut.rank) : 0));
    const x1 = near ? first : total;
    layout.xaxis = Object.assign({}, axis, { range: [-x1 * 0.02, x1 * 1.02 + 1], title: label("rank of the singular value"), showgrid: false, fixedrange: true });
    layout.yaxis = Object.assign({}, axis, { type: "log", range: [Math.log10(low) - 0.06, Math.log10(Math.max(view.largest, view.edge || 0)) + 0.08], title: label("singular value, log scale"), fixedrange: true, tickvals: decades(low, view.largest), ticktext: decades(low, view.largest).map(String) });
    layout.shapes = []; layout.annotations = [];
    if (cut) {
      const r = cut.rank + 0.5;
      layout.shapes.push({ type: "rect", yref: "paper", x0: r, x1: x1 * 1.02 + 1, y0: 0, y1: 1, fillcolor: css("cut"), line: { width: 0 }, layer: "below" });
      layout.shapes.push({ type: "line", yref: "paper", x0: r, x1: r, y0: 0, y1: 1, line: { color: css("law"), width: 1.5 } });
      layout.annotations.push({ x: r, y: 1.005, yref: "paper", text: `rank ${figure(cut.rank, 6)} kept`, showarrow: false, xanchor: r / x1 > 0.8 ? "right" : "center", yanchor: "bottom", font: { size: 11.5, color: css("ink") } });
    }
    if (view.edge) {
      layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: view.edge, y1: view.edge, line: { color: css("spike"), width: 1.5, dash: "5px,3px" } });
      layout.annotations.push({ x: 1, xref: "paper", y: Math.log10(view.edge), text: `edge ${figure(view.edge)}`, showarrow: false, xanchor: "right", yanchor: "bottom", font: { size: 11.5, color: css("spike") } });
    }
    return Plotly.react(el, traces, layout, config);
  }

  return { glance, mark, spectrum, scree, isFar, cutOf, css, figure };
})();
