// The two charts of one layer: its spectrum as a histogram under the noise law, and its values in order.
"use strict";

const Spectra = (() => {
  const { css, figure, stroke, upright, level, band, note } = Theme;
  const line = () => stroke("law", 2);
  const edgeLine = () => stroke("spike", 1.5, "5px,3px");

  // A cut is drawn only in the basis in which the plan makes it.
  const cutOf = (layer, view) =>
    layer.plan && view.kept && (layer.views.length === 1 || layer.plan.basis === view.basis) ? view.kept : null;
  // Whether a cut keeps the value at a position, 0 the largest: those at the top, and some that the plan names.
  const keeps = (cut, i) => i < cut.top || cut.others.includes(i);
  // Spikes far out would squeeze the bulk into a corner: then the chart starts near the edge.
  const isFar = (view) => view.edge && view.largest > 2.6 * view.edge;

  // Every spike is a mark of its own: full when the plan keeps it, hollow when it goes.
  function spikeMarks(view, cut) {
    const many = view.spike_values.length > 40;
    return {
      size: 7,
      color: css("spike"),
      opacity: many ? 0.75 : 1,
      symbol: view.spike_values.map((_, i) => (cut && !keeps(cut, i) ? "circle-open" : "circle")),
      line: { width: 1, color: css(many ? "spike" : "card") },
    };
  }

  function spectrum(el, layer, view, near, lanes) {
    const cut = cutOf(layer, view);
    const low = Math.min(view.hist.start, view.law ? view.law.s[0] : view.hist.start);
    const edges = lanes.map((x) => x.at);
    const high =
      isFar(view) && near
        ? Math.max(2.2 * view.edge, ...edges.map((x) => 1.1 * x))
        : Math.max(view.largest || 0, view.edge || 0, ...edges);
    const pad = (high - low) * 0.04 || 1;
    const range = [low >= 0 && low < pad ? -0.6 * pad : low - pad, high + pad];
    const peak = 1.2 * Math.max(1, ...view.hist.counts, ...(view.law ? view.law.count : []));

    const layout = Theme.layout();
    Object.assign(layout, { bargap: 0, barmode: "overlay" });
    layout.xaxis = Theme.axis("singular value", { range, anchor: "y2", showgrid: false });
    const roof = Edges.roof(lanes);
    layout.yaxis = Theme.axis("values a bar", { domain: [0.12, roof], range: [0, peak], nticks: 5 });
    layout.yaxis2 = Theme.axis("", { domain: [0, 0.09], range: [0, 1], visible: false });
    if (cut) markCut(layout, cut, view.values, range);
    const marks = Edges.mark(layout, lanes, range, 0.12);
    if (view.edge !== null) markEdge(layout, view, range, !lanes.length);
    const small = structured(view, cut, (list) => ({ x: list.map((v) => v[1]), y: list.map(() => 0.5), yaxis: "y2" }));
    return Plotly.react(el, [bars(view, cut), ...law(view), ...rug(view, cut), ...small, ...marks], layout, Theme.config);
  }

  function bars(view, cut) {
    const { start, width, counts, bulk_bars } = view.hist;
    const centers = counts.map((_, i) => start + (i + 0.5) * width);
    const color = centers.map((c, i) => {
      const side = view.edge !== null && i >= bulk_bars ? "spike" : "bulk";
      return css(cut && c < cut.threshold ? side + "-cut" : side);
    });
    return {
      type: "bar",
      name: "values",
      x: centers,
      y: counts,
      width,
      marker: { color, line: { color: css("card"), width: counts.length > 50 ? 0.5 : 1 } },
      customdata: centers.map((c) => `${figure(c - width / 2)} to ${figure(c + width / 2)}`),
      hovertemplate: "%{y} values from %{customdata}<extra></extra>",
    };
  }

  function law(view) {
    if (!view.law) return [];
    const hovertemplate = "noise law: %{y:.3~g} a bar<extra></extra>";
    return [
      { type: "scatter", mode: "lines", name: "law", x: view.law.s, y: view.law.count, line: line(), hovertemplate },
    ];
  }

  function rug(view, cut) {
    const total = view.values,
      k = view.spike_values.length;
    const ticks = view.bulk_index.map((i) => css(cut && !keeps(cut, i) ? "bulk-cut" : "bulk"));
    const fate = (i) => (cut ? (keeps(cut, i) ? ", kept" : ", cut") : "");
    const words = (s, i) => `spike ${i + 1} of ${k}: ${figure(s, 4)}, ${figure(s / view.edge)} × edge${fate(i)}`;
    return [
      {
        type: "scatter",
        mode: "markers",
        name: "bulk",
        yaxis: "y2",
        x: view.bulk_values,
        y: view.bulk_values.map(() => 0.5),
        customdata: view.bulk_index.map((i) => i + 1),
        marker: { symbol: "line-ns", size: 8, line: { width: 1, color: ticks } },
        hovertemplate: `value %{customdata} of ${total}: %{x:.4~g}<extra></extra>`,
      },
      {
        type: "scatter",
        mode: "markers",
        name: "spikes",
        yaxis: "y2",
        x: view.spike_values,
        y: view.spike_values.map(() => 0.5),
        customdata: view.spike_values.map(words),
        marker: spikeMarks(view, cut),
        hovertemplate: "%{customdata}<extra></extra>",
      },
    ];
  }

  // Hollow diamonds over the ticks, or over the dots: directions of the bulk whose vectors are not random, and those
  // that a plan keeps by name, whether or not this survey looked at vectors.
  function structured(view, cut, place) {
    const odd = new Set((view.structured || []).map((v) => v[0]));
    const named = cut ? cut.named.filter((v) => !odd.has(v[0])) : [];
    const list = (view.structured || []).concat(named).sort((a, b) => a[0] - b[0]);
    if (!list.length) return [];
    const why = (rank) => (odd.has(rank) ? "its vectors are not random" : "named in the plan");
    const fate = (rank) => (cut ? (keeps(cut, rank - 1) ? ", kept" : ", cut") : "");
    return [
      {
        type: "scatter",
        mode: "markers",
        name: "structured",
        ...place(list),
        customdata: list.map(([rank, s]) => `value ${rank}, ${figure(s, 4)}: ${why(rank)}${fate(rank)}`),
        marker: { symbol: "diamond-open", size: 9, color: css("e3"), line: { width: 1.5 } },
        hovertemplate: "%{customdata}<extra></extra>",
      },
    ];
  }

  function markCut(layout, cut, total, range) {
    const at = cut.threshold,
      share = (at - range[0]) / (range[1] - range[0]);
    layout.shapes.push(band(range[0], Math.min(at, range[1]), css("cut")), upright(at, stroke("law", 1.5)));
    if (at >= range[1]) return;
    const [text, side] =
      share > 0.2 ? [`← ${figure(total - cut.rank, 6)} cut`, "right"] : [`${figure(cut.top, 6)} ${cut.others.length ? "largest " : ""}kept →`, "left"];
    layout.annotations.push(note(at, 0.925, text, side, "ink", { bgcolor: css("card"), borderpad: 1 }));
  }

  function markEdge(layout, view, range, alone) {
    if (view.edge_interval) layout.shapes.push(band(...view.edge_interval, css("spike"), 0.12));
    const right = (view.edge - range[0]) / (range[1] - range[0]) > 0.8;
    const label = note(view.edge, 1.005, `edge ${figure(view.edge)}`, right ? "right" : "center", "spike");
    // Beside others it has its own lane, with its name.
    if (alone) {
      layout.shapes.push(upright(view.edge, edgeLine()));
      layout.annotations.push(label);
    }
    const beyond = view.spike_values.filter((s) => s > range[1]).length;
    if (beyond) {
      layout.annotations.push(
        note(range[1], 1.005, `${beyond} more, up to ${figure(view.largest)} →`, "right", "soft"),
      );
    }
  }

  // 1, 2, 5, 10 ...: Plotly's own labels on a logarithmic axis leave out the power of ten.
  function decades(low, high) {
    const out = [];
    for (let e = Math.floor(Math.log10(low)) - 1; e <= Math.ceil(Math.log10(high)); e++) {
      for (const m of [1, 2, 5]) out.push(Number(`${m}e${e}`));
    }
    return high / low > 300 ? out.filter((_, i) => i % 3 === 0) : out;
  }

  function scree(el, layer, view, near) {
    const cut = cutOf(layer, view),
      total = view.values;
    const positive = (values) => values.map((s) => (s > 0 ? s : null));
    const rank = view.bulk_index.map((i) => i + 1);
    const traces = [
      {
        type: "scatter",
        mode: "markers",
        name: "bulk",
        x: rank,
        y: positive(view.bulk_values),
        marker: { size: total > 150 ? 4 : 6, color: rank.map((r) => css(cut && !keeps(cut, r - 1) ? "bulk-cut" : "bulk")) },
        hovertemplate: `value %{x} of ${total}: %{y:.4~g}<extra></extra>`,
      },
      {
        type: "scatter",
        mode: "markers",
        name: "spikes",
        x: view.spike_values.map((_, i) => i + 1),
        y: view.spike_values,
        marker: spikeMarks(view, cut),
        hovertemplate: "spike %{x}: %{y:.4~g}<extra></extra>",
      },
    ];
    if (view.law) {
      const y = positive(view.law.expected),
        hovertemplate = "noise law: %{y:.4~g}<extra></extra>";
      traces.unshift({ type: "scatter", mode: "lines", name: "law", x: rank, y, line: line(), hovertemplate });
    }
    traces.push(...structured(view, cut, (list) => ({ x: list.map((v) => v[0]), y: list.map((v) => v[1]) })));
    const shown = view.spike_values.concat(view.bulk_values).filter((s) => s > 0);
    const high = Math.max(view.largest, view.edge || 0);
    // A few values at zero up to rounding would stretch the axis over decades that hold nothing.
    const low = Math.max(Math.min(view.edge || high, ...shown), high * 1e-3);
    const first = Math.max(20, 2 * view.spike_values.length, cut ? Math.round(1.3 * cut.top) : 0);
    const last = (near ? Math.min(total, first) : total) * 1.02 + 1;
    const ticks = decades(low, high);

    const layout = Theme.layout();
    layout.xaxis = Theme.axis("rank of the singular value", { range: [-last * 0.02, last], showgrid: false });
    layout.yaxis = Theme.axis("singular value, log scale", {
      type: "log",
      range: [Math.log10(low) - 0.06, Math.log10(high) + 0.08],
      tickvals: ticks,
      ticktext: ticks.map(String),
    });
    if (cut) {
      const at = cut.top + 0.5,
        side = at / last > 0.8 ? "right" : at / last < 0.15 ? "left" : "center";
      layout.shapes.push(band(at, last, css("cut")), upright(at, stroke("law", 1.5)));
      layout.annotations.push(note(at, 1.005, `${figure(cut.top, 6)} largest kept`, side, "ink"));
    }
    if (view.edge) {
      layout.shapes.push(level(view.edge, edgeLine()));
      const place = { xref: "paper", yref: "y" };
      layout.annotations.push(note(1, Math.log10(view.edge), `edge ${figure(view.edge)}`, "right", "spike", place));
    }
    return Plotly.react(el, traces, layout, Theme.config);
  }

  return { spectrum, scree, isFar, cutOf };
})();
