// Several estimators on one layer: their edges in lanes over a chart, the edge by setting, and the scores by rank.
"use strict";

const Edges = (() => {
  const { css, safe, figure, count, stroke, upright, band, note, h } = Theme;
  const LANE = 0.062; // of the height of the chart

  const color = (i) => "e" + (i % 7);
  // The edges were found on the spectrum of the verdict: the first view.
  const has = (data, layer, view) => Boolean(data.estimators.length && view && view === layer.views[0]);

  // What each estimator says of a layer, as far as it says something; `own` is the estimator of the survey.
  function lanes(data, layer) {
    return data.estimators
      .map((e, i) => ({ ...e, i, own: i === 0, ...layer.estimators[e.name] }))
      .filter((x) => x.edge !== null && x.edge !== undefined)
      .map((x) => ({ ...x, at: x.edge, span: x.edge_interval, text: `${x.long} ${figure(x.edge)}`, more: count(x.spikes) }));
  }
  const roof = (list) => (list.length ? 0.975 - LANE * list.length : 1);

  // One lane each over the chart: a mark, its name beside it, and a line down to the floor. In the order of their
  // places, so that no line runs through the name of another.
  function mark(layout, list, range, floor) {
    if (!list.length) return [];
    const share = (x) => (x - range[0]) / (range[1] - range[0]);
    const left = Math.max(...list.map((x) => share(x.at))) > 0.6;
    const order = list.slice().sort((a, b) => (left ? b.at - a.at : a.at - b.at));
    layout.yaxis3 = Theme.axis("", {
      domain: [roof(list) + 0.025, 1],
      range: [order.length - 0.5, -0.5],
      visible: false,
    });
    order.forEach((x, k) => {
      const y = 1 - ((1 - roof(list) - 0.025) * (k + 0.5)) / order.length;
      const line = stroke(color(x.i), x.own ? 2 : 1.25, x.own ? "solid" : "4px,3px");
      layout.shapes.push(upright(x.at, line, { y0: floor, y1: y }));
      if (x.span) {
        const thick = { ...stroke(color(x.i), 5), color: css(color(x.i)) };
        layout.shapes.push({ type: "line", x0: x.span[0], x1: x.span[1], yref: "y3", y0: k, y1: k, line: thick, opacity: 0.35 });
      }
      const words = `${x.own ? "<b>" : ""}${safe(x.text)}${x.own ? "</b>" : ""}`;
      // Too near the axis for its name, it has it on the other side, over the lines of those above.
      const flip = left && share(x.at) < 0.3,
        before = left && !flip;
      const place = { yref: "y3", yanchor: "middle", xshift: (before ? -1 : 1) * (x.span ? 12 : 7) };
      if (flip) Object.assign(place, { bgcolor: css("card"), borderpad: 0 });
      const where = x.span ? x.span[before ? 0 : 1] : x.at;
      layout.annotations.push(note(where, k, words, before ? "right" : "left", color(x.i), place));
    });
    return [
      {
        type: "scatter",
        mode: "markers",
        name: "edges",
        yaxis: "y3",
        x: order.map((x) => x.at),
        y: order.map((_, k) => k),
        customdata: order.map((x) => {
          const span = x.span ? `, law ends at ${figure(x.span[0], 4)} to ${figure(x.span[1], 4)} (90 %)` : "";
          return `${safe(x.long)}: edge ${figure(x.edge, 4)}${span}, ${count(x.spikes)} spikes`;
        }),
        marker: { opacity: 1, size: order.map((x) => (x.own ? 9 : 7)), color: order.map((x) => css(color(x.i))), symbol: "diamond" },
        hovertemplate: "%{customdata}<extra></extra>",
      },
    ];
  }

  // The edge, and the number of spikes with it, as one setting changes and the other stays.
  function settings(el, data, layer) {
    const c = layer.curves,
      own = layer.estimators[data.estimators[0].name];
    const layout = Theme.layout({ l: 52, r: 14, t: 26, b: 40 });
    const traces = [],
      every = c.alpha.edge.concat(c.beta.edge, (own && own.edge_interval) || []);
    const middle = own && own.edge ? own.edge : every[0];
    // A curve that hardly moves should look as if it hardly moves.
    const low = Math.min(0.97 * middle, ...every),
      high = Math.max(1.03 * middle, ...every);
    const pad = 0.08 * (high - low),
      edges = [low - pad, high + pad];
    const most = 1.12 * Math.max(1, ...c.alpha.spikes, ...c.beta.spikes);
    const halves = [
      ["alpha", "α, share left out at each end", "x", [0, 0.47], [0.03, 0.47]],
      ["beta", "β, odds of a false spike", "x2", [0.54, 1], [-0.03, 1]],
    ];
    halves.forEach(([key, title, x, domain, range], i) => {
      const y = i ? "y3" : "y",
        y2 = i ? "y4" : "y2",
        n = i ? "2" : "";
      layout["xaxis" + n] = Theme.axis(title, { domain, range, anchor: y2, showgrid: false, nticks: 6 });
      layout["yaxis" + (i ? "3" : "")] = Theme.axis(i ? "" : "edge", {
        domain: [0.48, 1],
        range: edges,
        anchor: x,
        nticks: 5,
        showticklabels: !i,
      });
      layout["yaxis" + (i ? "4" : "2")] = Theme.axis(i ? "" : "spikes", {
        domain: [0, 0.4],
        range: [-0.04 * most, most],
        anchor: x,
        nticks: 4,
        showticklabels: !i,
      });
      const at = c[key].x.indexOf(c.chosen[key]);
      const words = c[key].x.map(
        (v, k) => `${i ? "β" : "α"} = ${figure(v)}: edge ${figure(c[key].edge[k], 4)}, ${count(c[key].spikes[k])} spikes`,
      );
      for (const [axis, values, name] of [
        [y, c[key].edge, key],
        [y2, c[key].spikes, key + " spikes"],
      ]) {
        traces.push({
          type: "scatter",
          mode: "lines+markers",
          name,
          x: c[key].x,
          y: values,
          xaxis: x,
          yaxis: axis,
          line: stroke("law", 1.5),
          marker: { size: 4, color: css("law") },
          customdata: words,
          hovertemplate: "%{customdata}<extra></extra>",
        });
        if (at < 0) continue;
        traces.push({
          type: "scatter",
          mode: "markers",
          name: name + " chosen",
          x: [c.chosen[key]],
          y: [values[at]],
          xaxis: x,
          yaxis: axis,
          marker: { size: 11, color: css("spike"), line: { width: 2, color: css("card") } },
          customdata: [words[at]],
          hovertemplate: "chosen: %{customdata}<extra></extra>",
        });
      }
      if (own && own.edge_interval) {
        const [y0, y1] = own.edge_interval;
        const place = { xref: x + " domain", yref: y, x0: 0, x1: 1, y0, y1 };
        layout.shapes.push({ ...band(0, 1, css("spike"), 0.12), ...place });
      }
      layout.shapes.push({ ...upright(c.chosen[key], stroke("spike", 1, "2px,3px")), xref: x, layer: "below" });
      const middleOf = (c.chosen[key] - range[0]) / (range[1] - range[0]);
      const side = middleOf < 0.2 ? "left" : "center";
      const words2 = `${i ? "β" : "α"} = ${figure(c.chosen[key])} chosen`;
      layout.annotations.push(note(c.chosen[key], 1.005, words2, side, "spike", { xref: x }));
    });
    return Plotly.react(el, traces, layout, Theme.config);
  }

  // The average cosine of what is kept, and the functional that peaks, against the number of values kept.
  function score(el, data, layer, near) {
    const c = layer.curves,
      total = layer.values,
      list = lanes(data, layer).map((x) => ({ ...x, at: x.spikes, span: null, text: `${x.long} ${count(x.spikes)}` }));
    const wanted = Math.max(20, 1.35 * Math.max(...list.map((x) => x.spikes), c.peak || 0));
    const last = near ? Math.min(total, wanted) : total,
      range = [-0.02 * last, 1.03 * last];
    const top = roof(list),
      split = 0.42 * top;
    const layout = Theme.layout({ l: 52, r: 14, t: 10, b: 40 });
    const inside = c.ranks.map((k) => k <= last * 1.03);
    const seen = c.gain.filter((_, i) => inside[i]);
    const low = Math.min(0, ...seen),
      high = Math.max(0, ...seen),
      pad = 0.12 * (high - low || 1);
    layout.xaxis = Theme.axis("rank: number of values kept", { range, anchor: "y2", showgrid: false });
    layout.yaxis = Theme.axis("mean cosine", { domain: [split + 0.06, top], range: [0, 1.06], nticks: 4 });
    layout.yaxis2 = Theme.axis("gain / squared norm", { domain: [0, split], range: [low - pad, high + pad], nticks: 4, tickformat: ".0%" });
    const line = (name, y, yaxis, words) => ({
      type: "scatter",
      mode: "lines",
      name,
      x: c.ranks,
      y,
      yaxis,
      line: stroke("law", 2),
      hovertemplate: words,
    });
    const dot = (name, k, values, yaxis, symbol) => {
      const i = c.ranks.reduce((best, r, j) => (Math.abs(r - k) < Math.abs(c.ranks[best] - k) ? j : best), 0);
      const away = k > 0.75 * last ? "right" : "left";
      const place = { yref: yaxis, xshift: away === "left" ? 7 : -7, yshift: 5, bgcolor: css("card"), borderpad: 1 };
      layout.annotations.push(note(k, values[i], `${name} ${count(k)}`, away, "ink", place));
      const marker = { size: 10, symbol, color: css("law"), line: { width: 2, color: css("card") } };
      const hovertemplate = `${name}: %{x} values kept<extra></extra>`;
      return { type: "scatter", mode: "markers", name, x: [k], y: [values[i]], yaxis, marker, hovertemplate };
    };
    const marks = mark(layout, list, range, 0);
    const traces = [
      line("average", c.average, "y", "%{x} kept: mean cosine %{y:.3f}<extra></extra>"),
      line("gain", c.gain, "y2", "%{x} kept: gain %{y:.1%} of the squared norm<extra></extra>"),
      ...marks,
    ];
    if (c.knee) traces.push(dot("knee", c.knee, c.average, "y", "circle"));
    if (c.peak) traces.push(dot("peak", c.peak, c.gain, "y2", "circle"));
    return Plotly.react(el, traces, layout, Theme.config);
  }

  function caption(data, layer, tab) {
    const own = data.estimators[0].long;
    if (tab === "spectrum") {
      const one = layer.estimators[data.estimators[0].name];
      const interval = one && one.edge_interval ? ` The band holds the end of the law of the noise, by ${own}, 90\u00a0%; the edge itself is set near it, where the largest value of noise is seldom found.` : "";
      return ` Each lane above is an estimator, with its edge drawn down through the spectrum.${interval}`;
    }
    if (tab === "settings") {
      const own_ = layer.estimators[data.estimators[0].name];
      const interval = own_ && own_.edge_interval ? "; the band is the 90\u00a0% interval for the end of the law of the noise, near the edge" : "";
      return (
        "How far the answer of Bema hangs on its two settings: each changes while the other stays as chosen. Flat " +
        `means that the choice hardly matters${interval}.`
      );
    }
    return (
      "Above: Ave_w(φ), the mean expected cosine between the kept directions and the signal behind them, weighted by " +
      "singular value; it can only fall, and its knee is where it starts to. Below: Σ s² (2φ − 1) as a share of the " +
      "squared norm, which rises while a direction is more signal than noise; its peak is a cut. Diamonds: how many " +
      "values each estimator keeps."
    );
  }

  // The figures of every estimator, with the colour of its line.
  function figures(data, layer) {
    if (!data.estimators.length || !Object.keys(layer.estimators).length) return [];
    const heads = ["", "Edge", "Spikes", "Sigma", "Misfit"].map((text, i) =>
      h("th", { scope: "col", class: i ? "num" : "" }, text || "Estimator"),
    );
    const lines = data.estimators.map((e, i) => {
      const x = layer.estimators[e.name];
      const key = h("i", { style: `background:var(--${color(i)})` });
      const name = h("th", { scope: "row", class: i ? "" : "on" }, key, e.long);
      if (!x || x.refused) {
        const why = x ? x.refused : "not asked";
        return h("tr", {}, name, h("td", { colspan: "4", class: "why" }, why));
      }
      const ends = x.edge_interval && x.edge_interval.map((y) => figure(y, 4)).join(" to ");
      const words = { title: "where the law of the noise ends, 90 %" };
      const span = ends && [h("small", words, "law ends"), h("small", words, ends)];
      const cells = [figure(x.edge, 4), count(x.spikes), figure(x.sigma), figure(x.misfit, 2)];
      const told = cells.map((text, k) => h("td", { class: i ? "num" : "num on" }, text, ...((k ? null : span) || [])));
      return h("tr", { title: x.method || "" }, name, ...told);
    });
    return [h("table", {}, h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...lines))];
  }

  return { has, lanes, roof, mark, caption, figures, TABS: { settings, score } };
})();
