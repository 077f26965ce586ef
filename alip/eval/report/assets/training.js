"use strict";
// Curves of several runs. Data comes from the JSON in #data; names of runs are only ever set as text.
// The state (axis, smoothing, hidden runs) is in the address after #, so that a link or a bookmark keeps it.
(() => {
  const { runs, labels } = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5b6570", "#e69f00"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const AXES = { step: "optimizer step", samples: "samples", epoch: "epoch", hours: "hours since the first log line" };
  const $ = (id) => document.getElementById(id);
  const groups = [...new Set(runs.map((run) => run.group))];
  const state = { x: "step", smooth: 0, mean: false, log: false, hidden: new Set() };
  const colour = (run) => COLOURS[run.colour % COLOURS.length];
  runs.forEach((run) => {
    const own = runs.filter((other) => other.colour === run.colour);
    // Within a group by dash; beyond the colours, groups too.
    run.dash = DASHES[(own.indexOf(run) + Math.floor(run.colour / COLOURS.length)) % DASHES.length];
  });
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  const known = Object.keys(labels).filter((name) => names.includes(name)), isLoss = (name) => name.endsWith("loss");
  const order = [...known.filter(isLoss), ...names.filter((name) => name.startsWith("eval ")).sort(),
    ...known.filter((name) => !isLoss(name))];
  // Plotly reads a little markup in names (<b>, <i>, <a>): escaped, they are shown as they are.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const title = (name) => name.startsWith("eval ") ? name.slice(5) + " (primary, %)" : labels[name];

  function make(tag, name, text) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  const axes = Object.keys(AXES).filter((name) => runs.some((run) => Object.values(run.curves).some((c) => name in c)));
  for (const name of axes) {
    const option = make("option", "", AXES[name]);
    option.value = name;
    $("x").append(option);
  }

  // An EMA without the bias of its start, as TensorBoard smooths; a missing value stays missing.
  function smoothed(values) {
    if (!state.smooth) return values;
    let sum = 0, weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = state.smooth * sum + (1 - state.smooth) * value;
      weight = state.smooth * weight + (1 - state.smooth);
      return sum / weight;
    });
  }
  const shown = () => runs.filter((run) => !state.hidden.has(run.name));
  function traceOf(run, curve, name) {
    const few = curve.value.length < 40;
    return { x: curve[state.x], y: name.startsWith("eval ") ? curve.value : smoothed(curve.value), name: plain(run.name),
      type: "scatter", mode: few ? "lines+markers" : "lines", marker: { size: 4 },
      line: { color: colour(run), dash: run.dash, width: 1.6 }, hovertemplate: "%{y:.4g}<extra>" + plain(run.name) + "</extra>" };
  }
  // The mean of a group's runs at the points of its first one, where all of them have values around it.
  function meanOf(members, name) {
    const curves = members.map((run) => run.curves[name]).filter((curve) => curve && curve[state.x]);
    if (!curves.length) return null;
    const at = curves[0][state.x];
    const mean = at.map((x, i) => {
      const values = curves.map((curve) => between(curve[state.x], curve.value, x));
      return values.includes(null) ? null : values.reduce((a, b) => a + b, 0) / values.length;
    });
    return { [state.x]: at, value: mean };
  }
  function between(xs, ys, x) {
    if (x === null || !xs.length || x < xs[0] || x > xs[xs.length - 1]) return null;
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle; else high = middle;
    }
    if (ys[low] === null || ys[high] === null) return xs[low] === x ? ys[low] : xs[high] === x ? ys[high] : null;
    return xs[high] === xs[low] ? ys[low] : ys[low] + (ys[high] - ys[low]) * (x - xs[low]) / (xs[high] - xs[low]);
  }
  function traces(name) {
    if (!state.mean) return shown().filter((run) => run.curves[name] && run.curves[name][state.x])
      .map((run) => traceOf(run, run.curves[name], name));
    const found = [];
    for (const group of groups) {
      const members = shown().filter((run) => run.group === group);
      const mean = members.length ? meanOf(members, name) : null;
      if (mean) found.push(traceOf({ name: group + (members.length > 1 ? ", mean of " + members.length : ""),
        colour: members[0].colour, dash: "solid" }, mean, name));
    }
    return found;
  }
  function draw() {
    for (const name of order) {
      const loss = state.log && labels[name] && labels[name].startsWith("loss");
      Plotly.react("plot-" + order.indexOf(name), traces(name), {
        title: { text: plain(title(name)), font: { size: 13 }, x: 0.02, xanchor: "left" },
        margin: { l: 52, r: 12, t: 34, b: 38 }, showlegend: false, hovermode: "x unified", font: { size: 11 },
        xaxis: { title: { text: AXES[state.x], standoff: 4 }, gridcolor: "#e6eaee", zeroline: false },
        yaxis: { type: loss ? "log" : "linear", gridcolor: "#e6eaee", zeroline: false },
      }, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
    }
    ends();
    $("smooth-value").textContent = state.smooth ? state.smooth.toFixed(2) : "off";
    document.body.dataset.shown = String(shown().length);
    const values = new URLSearchParams();
    if (state.x !== axes[0]) values.set("x", state.x);
    if (state.smooth) values.set("smooth", state.smooth);
    if (state.mean) values.set("mean", "1");
    if (state.log) values.set("log", "1");
    for (const run of state.hidden) values.append("hide", run);
    history.replaceState(null, "", "#" + values);
  }
  // The last value of every curve; of evaluations the best is bold.
  function ends() {
    const table = $("ends");
    table.replaceChildren();
    const head = make("tr");
    const columns = order.filter((name) => name === "loss" || name.startsWith("eval ") || name === "samples_per_s");
    for (const text of ["run", "steps", ...columns.map(title)]) head.append(make("th", "", text));
    table.append(head);
    const last = (run, name) => {
      const values = run.curves[name] ? run.curves[name].value.filter((value) => value !== null) : [];
      return values.length ? values[values.length - 1] : null;
    };
    for (const run of shown()) {
      const row = make("tr");
      const steps = Object.values(run.curves)[0].step;
      row.append(make("td", "", run.name), make("td", "", steps[steps.length - 1].toLocaleString("en")));
      for (const name of columns) {
        const value = last(run, name), all = shown().map((other) => last(other, name)).filter((other) => other !== null);
        const best = name.startsWith("eval ") && all.length > 1 && value === Math.max(...all);
        row.append(make("td", best ? "best" : "", value === null ? "–" : value.toPrecision(4)));
      }
      table.append(row);
    }
  }

  const saved = new URLSearchParams(location.hash.slice(1));
  if (axes.includes(saved.get("x"))) state.x = saved.get("x"); else state.x = axes[0];
  state.smooth = Math.min(0.99, Math.max(0, Number(saved.get("smooth")) || 0));
  state.mean = saved.has("mean"); state.log = saved.has("log");
  for (const name of saved.getAll("hide")) if (runs.some((run) => run.name === name)) state.hidden.add(name);
  $("x").value = state.x; $("smooth").value = state.smooth; $("mean").checked = state.mean; $("log").checked = state.log;
  $("about").textContent = runs.length + (runs.length === 1 ? " run" : " runs") +
    (groups.length < runs.length ? " in " + groups.length + " groups" : "") + "; click a name to hide a run, drag in a plot to enlarge.";
  for (const run of runs) {
    const button = make("button", "run"), line = make("span", "line");
    line.style.borderTopColor = colour(run);
    line.style.borderTopStyle = run.dash === "solid" ? "solid" : run.dash === "dot" ? "dotted" : "dashed";
    button.type = "button";
    button.append(line, make("span", "", run.name === run.group ? run.name : run.group + ": " + run.name));
    button.setAttribute("aria-pressed", String(!state.hidden.has(run.name)));
    button.addEventListener("click", () => {
      if (!state.hidden.delete(run.name)) state.hidden.add(run.name);
      button.setAttribute("aria-pressed", String(!state.hidden.has(run.name)));
      draw();
    });
    $("runs").append(button);
  }
  order.forEach((name, number) => {
    const box = make("div", "plot");
    box.id = "plot-" + number;
    $("plots").append(box);
  });
  $("x").addEventListener("change", (event) => { state.x = event.target.value; draw(); });
  $("smooth").addEventListener("input", (event) => { state.smooth = Number(event.target.value); draw(); });
  $("mean").addEventListener("change", (event) => { state.mean = event.target.checked; draw(); });
  $("log").addEventListener("change", (event) => { state.log = event.target.checked; draw(); });
  draw();
  document.body.dataset.plots = String(order.length);
  document.body.dataset.ready = "yes";
})();
