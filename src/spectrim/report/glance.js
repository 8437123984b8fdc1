// The whole model in one chart: a column a matrix, its values in edges above, and what the plan keeps of them below.
"use strict";

const Glance = (() => {
  const { css, safe, figure, stroke, upright } = Theme;
  const small = () => window.matchMedia("(max-width: 640px)").matches;
  // Linear up to the edge, logarithmic above: the same map as `height` in view.py, and its inverse.
  const height = (ratio) => (ratio <= 1 ? ratio : 1 + Math.log(ratio));
  const ratio = (y) => (y <= 1 ? y : Math.exp(y - 1));
  // A cut is shown in its own basis, since positions and edges of another one are not those that it goes by.
  let basis = null;
  const viewOf = (layer) => layer.views.find((v) => v.basis === basis) || layer.views[0] || null;
  const cellsOf = (layer) => (layer.views.length ? viewOf(layer).map : []);
  const share = (layer, k) => k / (viewOf(layer).values || 1);

  function ordered(layers, order) {
    if (order !== "role") return layers.map((x) => ({ layer: x, group: x.block }));
    const first = new Map();
    layers.forEach((x) => first.has(x.role) || first.set(x.role, first.size));
    return layers
      .map((x) => ({ layer: x, group: x.short.replace(/^.*?\d+\./, "") }))
      .sort((a, b) => first.get(a.layer.role) - first.get(b.layer.role) || a.layer.index - b.layer.index);
  }

  // Labels and borders of runs of columns that belong together: the blocks of the network, or its roles.
  function ticks(list, byRole, each) {
    if (list.length <= 10) {
      const names = list.map(({ layer: x }) => (x.short.length > 22 ? "…" + x.short.slice(-21) : x.short));
      const wide = Math.max(...names.map((n) => n.length)) * 7 > each;
      return { at: list.map((_, i) => i), text: names.map(safe), borders: [], title: "", angle: wide ? -30 : 0 };
    }
    const words = new Set(list.filter((x) => x.group).map((x) => x.group.split(" ")[0]));
    const bare = !byRole && words.size === 1; // "layer 3" on an axis that is called "layer" is 3
    const runs = [];
    list.forEach((x, i) => {
      if (i && x.group === list[i - 1].group) runs[runs.length - 1].end = i;
      else runs.push({ start: i, end: i, group: x.group });
    });
    const named = runs.filter((r) => r.group);
    const step = Math.max(1, Math.ceil(named.length / (byRole ? 60 : small() ? 12 : 40)));
    const some = named.filter((_, i) => i % step === 0);
    return {
      at: some.map((r) => (r.start + r.end) / 2),
      text: some.map((r) => safe(bare ? r.group.split(" ")[1] : r.group)),
      borders: runs.length <= 80 ? runs.slice(1).map((r) => r.start - 0.5) : [],
      title: bare ? [...words][0] : "",
      angle: byRole ? -35 : 0,
    };
  }

  function mix(a, b, t) {
    const [u, v] = [a, b].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    return `rgb(${u.map((c, i) => Math.round(c + (v[i] - c) * t)).join(",")})`;
  }

  // Bulk in greys below zero, spikes in the accent above it; roots, because a single spike must be seen.
  function map(list, cells, gap) {
    let top = cells * 2;
    const most = [1e-9, 1e-9];
    for (const { layer } of list) {
      for (const [cell, k] of cellsOf(layer)) {
        const side = cell < cells ? 0 : 1;
        most[side] = Math.max(most[side], share(layer, k));
        top = Math.max(top, cell + 2);
      }
    }
    const head = list.map(({ layer: x }) => {
      const told = x.views.length
        ? `${figure(viewOf(x).spikes)} spikes of ${figure(viewOf(x).values, 6)}`
        : safe(x.note || "no verdict");
      return `<b>${safe(x.short)}</b><br>${told}`;
    });
    const z = Array.from({ length: top }, () => new Array(list.length).fill(null));
    const text = Array.from({ length: top }, () => head.slice());
    list.forEach(({ layer }, i) => {
      for (const [cell, k] of cellsOf(layer)) {
        const root = Math.sqrt(share(layer, k) / most[cell < cells ? 0 : 1]);
        z[cell][i] = cell < cells ? -(0.12 + 0.88 * root) : 0.35 + 0.65 * root;
        const [from, to] = [cell / cells, (cell + 1) / cells].map((y) => figure(ratio(y), 2));
        text[cell][i] += `<br>${figure(k)} at ${from} to ${to} edges`;
      }
    });
    const [card, bulk, spike] = ["card", "bulk", "spike"].map(css);
    return {
      type: "heatmap",
      x: list.map((_, i) => i),
      y: z.map((_, i) => (i + 0.5) / cells),
      z,
      text,
      hovertemplate: "%{text}<extra></extra>",
      zmin: -1,
      zmax: 1,
      colorscale: [
        [0, mix(bulk, css("ink"), 0.35)],
        [0.25, bulk],
        [0.49, mix(card, bulk, 0.12)],
        [0.5, card],
        [0.51, mix(card, spike, 0.15)],
        [0.7, mix(card, spike, 0.6)],
        [1, spike],
      ],
      showscale: false,
      xgap: gap,
      ygap: 0,
    };
  }

  function cutLine(list, top, wide) {
    const x = [],
      y = [];
    list.forEach(({ layer }, i) => {
      const v = viewOf(layer);
      if (!v || !v.kept || !v.edge) return;
      const at = Math.min(height(v.kept.threshold / v.edge), top);
      x.push(i - wide / 2, i + wide / 2, null);
      y.push(at, at, null);
    });
    return x.length ? [{ type: "scatter", mode: "lines", x, y, line: stroke("law", 2), hoverinfo: "skip" }] : [];
  }

  // What a plan keeps by name below its line: hollow diamonds, as in the chart of a layer.
  function named(list) {
    const x = [],
      y = [],
      words = [];
    list.forEach(({ layer }, i) => {
      const v = viewOf(layer);
      if (!v || !v.kept || !v.edge) return;
      for (const [rank, s] of v.kept.named.filter((one) => one[0] > v.kept.top)) {
        x.push(i);
        y.push(height(s / v.edge));
        words.push(`<b>${safe(layer.short)}</b><br>value ${figure(rank, 6)}: named in the plan, kept`);
      }
    });
    if (!x.length) return [];
    const marker = { symbol: "diamond-open", size: 7, color: css("e3"), line: { width: 1.5 } };
    return [
      { type: "scatter", mode: "markers", name: "named", x, y, customdata: words, marker, hovertemplate: "%{customdata}<extra></extra>" },
    ];
  }

  // The strip below: shares of the directions, or of the entries where the plan sets zeros.
  function strip(list, plan, wide) {
    const part = (name, color, f) => ({
      type: "bar",
      x: list.map((_, i) => i),
      y: list.map(({ layer }) => f(layer)),
      yaxis: "y2",
      width: wide,
      marker: { color: css(color), line: { width: 0 } },
      customdata: list.map(({ layer }) => safe(layer.short)),
      hovertemplate: `<b>%{customdata}</b><br>${name} %{y:.1%}<extra></extra>`,
    });
    if (plan && plan.goal === "zeros") {
      const zeros = (x) => (x.plan && x.plan.zero_share) || 0;
      return [part("entries kept", "bulk", (x) => 1 - zeros(x)), part("entries set to zero", "bulk-cut", zeros)];
    }
    // A matrix that the plan leaves alone keeps all: its spikes, and the rest as bulk.
    const kept = (x) =>
      (x.plan && x.plan.directions) || {
        spikes_kept: viewOf(x).spikes || 0,
        spikes_cut: 0,
        bulk_kept: viewOf(x).values - (viewOf(x).spikes || 0),
        bulk_cut: 0,
      };
    const of = (key) => (x) => (x.views.length ? kept(x)[key] / viewOf(x).values : 0);
    const [spikes, bulk] = plan ? ["spikes kept", "bulk kept"] : ["spikes", "bulk"];
    return [
      part(spikes, "spike", of("spikes_kept")),
      ...(plan ? [part("spikes cut", "spike-cut", of("spikes_cut"))] : []),
      part(bulk, "bulk", of("bulk_kept")),
      ...(plan ? [part("bulk cut", "bulk-cut", of("bulk_cut"))] : []),
    ];
  }

  function draw(el, data, order, open) {
    const cuts = data.layers.filter((x) => x.plan && viewOf(x) && viewOf(x).kept);
    basis = cuts.length ? cuts[0].plan.basis : null;
    const list = ordered(data.layers, order),
      cells = data.map.cells;
    const gap = list.length <= 60 ? 3 : list.length <= 130 ? 1 : 0;
    const each = Math.max(el.clientWidth - 70, 100) / list.length,
      wide = Math.max(0.5, 1 - gap / each);
    const heat = map(list, cells, gap),
      top = heat.z.length / cells;
    const cut = cutLine(list, top, wide),
      others = named(list),
      zeros = Boolean(data.plan && data.plan.goal === "zeros");
    const t = ticks(list, order === "role", each);
    const marks = [0, 0.5, 1, 2, 5, 10, 20, 50].filter((r) => height(r) <= top - 0.05);

    const layout = Theme.layout({ l: 52, r: 14, t: 12, b: 44 });
    Object.assign(layout, { barmode: "stack", bargap: 0 });
    layout.xaxis = Theme.axis(t.title, {
      range: [-0.6, list.length - 0.4],
      tickvals: t.at,
      ticktext: t.text,
      tickangle: t.angle,
      showgrid: false,
      anchor: "y2",
      ticks: "",
    });
    layout.xaxis.title.standoff = 4;
    layout.yaxis = Theme.axis("singular value / edge", {
      domain: [0.25, 1],
      range: [0, top],
      tickvals: marks.map(height),
      ticktext: marks.map(String),
      showgrid: false,
    });
    layout.yaxis2 = Theme.axis(small() ? "" : zeros ? "entries" : "directions", {
      domain: [0, 0.185],
      range: [0, 1],
      tickvals: [0, 1],
      ticktext: ["0", "100 %"],
      showgrid: false,
    });
    layout.shapes = [Theme.level(1, stroke("law", 1, "2px,3px"))].concat(
      t.borders.map((b) => upright(b, stroke("line", 1), { layer: "below" })),
    );
    el.order = list.map(({ layer }) => layer.index);
    el.fixed = layout.shapes;
    return Plotly.react(el, [heat, ...cut, ...others, ...strip(list, data.plan, wide)], layout, Theme.config).then(() => {
      el.removeAllListeners("plotly_click");
      el.on("plotly_click", (e) => open(el.order[Math.round(e.points[0].x)]));
      const elsewhere = data.layers.some((x) => x.plan && x.plan.elsewhere);
      return { cut: cut.length > 0, zeros, named: others.length > 0, elsewhere };
    });
  }

  // A frame around the column of the layer that is open; none where it is not there.
  function mark(el, index) {
    const i = el.order ? el.order.indexOf(index) : -1;
    const frame = { type: "rect", x0: i - 0.5, x1: i + 0.5, yref: "paper", y0: 0, y1: 1, line: stroke("spike", 1.5) };
    if (el.fixed) Plotly.relayout(el, { shapes: i < 0 ? el.fixed : el.fixed.concat([frame]) });
  }

  return { draw, mark };
})();
