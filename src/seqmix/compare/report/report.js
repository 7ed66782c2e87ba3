"use strict";
// Draws the figures of a comparison from the numbers embedded in the page.

const data = JSON.parse(document.getElementById("data").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const palettes = {
  light: ["#0072b2", "#d55e00", "#009e73", "#b8508f", "#b07d00", "#4a9fd0", "#7a5195", "#666666", "#8c564b", "#3f8f29"],
  dark: ["#5ab4f0", "#ff8c4a", "#35c79c", "#e58cc2", "#e6b422", "#8fd0f7", "#b695d6", "#aaaaaa", "#cf9a8d", "#86cf6f"],
};
const dashes = ["solid", "dash", "dot", "dashdot", "longdash"];
const choices = {
  training: { y: "held_out", x: "tokens", scale: "linear" },
  serving: { y: "decode_tokens_per_second" },
};

function color(index) {
  const palette = dark.matches ? palettes.dark : palettes.light;
  return palette[index % palette.length];
}

function dash(index) {
  return dashes[Math.floor(index / 5) % dashes.length];
}

function finishedOf(model) {
  return data.contenders.filter((one) => one.model === model && one.status === "finished");
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function layout(x, y) {
  const ink = getComputedStyle(document.documentElement).color;
  const line = dark.matches ? "#34383d" : "#e4e5e1";
  const narrow = window.innerWidth < 640;
  const axis = { gridcolor: line, linecolor: line, zeroline: false, automargin: true, fixedrange: narrow };
  return {
    xaxis: { ...axis, ...x },
    yaxis: { ...axis, ...y },
    font: { color: ink, size: narrow ? 11 : 13, family: "system-ui, sans-serif" },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 16, r: 16, t: 14, b: 64 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    hovermode: narrow ? "closest" : "x unified",
    hoverlabel: { bgcolor: dark.matches ? "#1d2024" : "#ffffff", font: { color: ink } },
    separators: ". ",
  };
}

const words = {
  bits_per_byte: ["bits per byte (lower is better)", "bits per byte, held-out"],
  accuracy: ["accuracy (higher is better)", "accuracy, held-out"],
};

function quality() {
  const key = data.measure;
  const sign = key === "accuracy" ? -1 : 1;
  const models = data.models.filter((model) => finishedOf(model).some((one) => one[key] !== null));
  const reached = (model) => mean(finishedOf(model).map((one) => one[key]));
  models.sort((a, b) => sign * (reached(b) - reached(a)));
  const traces = models.flatMap((model) => {
    const index = data.models.indexOf(model);
    const runs = finishedOf(model);
    const scores = runs.map((one) => one[key]);
    const text = runs.map((one) => `${model}, seed ${one.seed}: ${one[key].toFixed(4)}`);
    return [
      {
        x: scores, y: scores.map(() => model), text, hoverinfo: "text", mode: "markers", name: model,
        marker: { color: "rgba(0,0,0,0)", size: 13, line: { color: color(index), width: 2.5 } }, showlegend: false,
      },
      {
        x: [mean(scores)], y: [model], text: [`${model}, mean: ${mean(scores).toFixed(4)}`], hoverinfo: "text",
        mode: "markers", marker: { symbol: "line-ns-open", color: color(index), size: 26, line: { width: 3 } },
        showlegend: false,
      },
    ];
  });
  const shape = layout({ title: { text: words[key][0] } }, { type: "category" });
  shape.hovermode = "closest";
  return [traces, shape];
}

const axes = {
  tokens: "training tokens",
  flops: "training FLOPs",
  seconds: "seconds of training",
  money: `money (${data.unit})`,
};

function against(one, values, key) {
  // Evaluations are taken by tokens and seconds; the curve says what those tokens cost otherwise.
  const curve = one.curve;
  if (values[key]) return values[key];
  if (!curve || !curve.tokens.length) return values.tokens.map(() => null);
  const last = curve.tokens.length - 1;
  return values.tokens.map((tokens) => (curve[key][last] * tokens) / curve.tokens[last]);
}

function training() {
  const { x, y, scale } = choices.training;
  const traces = [];
  for (const one of data.contenders) {
    const values = y === "held_out" ? one.evaluations : one.curve;
    if (!values || !values.tokens.length) continue;
    const index = data.models.indexOf(one.model);
    const isFirst = finishedOf(one.model)[0] === one || !finishedOf(one.model).length;
    traces.push({
      x: against(one, values, x),
      y: y === "held_out" ? values[data.measure] : values.loss.map((loss) => loss / Math.LN2),
      name: isFirst ? one.model : `${one.model}, seed ${one.seed}`,
      legendgroup: one.model,
      showlegend: isFirst,
      mode: y === "held_out" ? "lines+markers" : "lines",
      line: { color: color(index), dash: dash(index), width: isFirst ? 2.4 : 1.3 },
      marker: { size: 5 },
      opacity: isFirst ? 1 : 0.65,
      hovertemplate: `${one.model}, seed ${one.seed}: %{y:.3f}<extra></extra>`,
    });
  }
  const unit = y === "held_out" ? words[data.measure][1] : "bits per token, training";
  return [traces, layout({ title: { text: axes[x] }, type: scale, exponentformat: "SI" }, { title: { text: unit } })];
}

function gradients() {
  const traces = [];
  data.models.forEach((model, index) => {
    const one = finishedOf(model).find((run) => run.gradient_norm_by_depth.length);
    if (!one) return;
    traces.push({
      x: one.gradient_norm_by_depth.map((_, depth) => depth),
      y: one.gradient_norm_by_depth, name: model, mode: "lines+markers",
      line: { color: color(index), dash: dash(index) }, hovertemplate: `${model}: %{y:.3g}<extra></extra>`,
    });
  });
  return [traces, layout({ title: { text: "layer" }, dtick: window.innerWidth < 640 ? 4 : 1 }, { type: "log", title: { text: "gradient norm" }, exponentformat: "power" })];
}

const serves = {
  decode_tokens_per_second: ["generated tokens per second", "SI", (v) => `${v.toPrecision(3)} tokens/s`],
  prefill_tokens_per_second: ["prompt tokens per second", "SI", (v) => `${v.toPrecision(3)} tokens/s`],
  decode_money_per_million_tokens: [`${data.unit} per million generated tokens`, "none", (v) => `${v.toPrecision(3)} ${data.unit}`],
  state_bytes: ["bytes of state", "SI", (v) => bytes(v)],
};

function bytes(value) {
  for (const [power, unit] of [[30, "GiB"], [20, "MiB"], [10, "KiB"]]) {
    if (value >= 2 ** power) return `${(value / 2 ** power).toPrecision(3)} ${unit}`;
  }
  return `${value} B`;
}

function serving() {
  const [title, format, words] = serves[choices.serving.y];
  const traces = [];
  const places = new Set();
  data.models.forEach((model, index) => {
    const one = finishedOf(model).find((run) => Object.keys(run[choices.serving.y]).length);
    if (!one) return;
    const points = Object.entries(one[choices.serving.y]).map(([key, value]) => [Number(key), value]);
    points.sort((a, b) => a[0] - b[0]);
    points.forEach(([context]) => places.add(context));
    traces.push({
      x: points.map((point) => point[0]), y: points.map((point) => point[1]), name: model, mode: "lines+markers",
      text: points.map((point) => words(point[1])), line: { color: color(index), dash: dash(index), width: 2.4 },
      hovertemplate: `${model}: %{text}<extra></extra>`,
    });
  });
  const ticks = [...places].sort((a, b) => a - b);
  return [
    traces,
    layout(
      { type: "log", title: { text: "context, tokens" }, tickvals: ticks, ticktext: ticks.map(String) },
      { type: "log", title: { text: title }, exponentformat: format },
    ),
  ];
}

function position() {
  const traces = [];
  data.models.forEach((model, index) => {
    const runs = finishedOf(model).filter((one) => one.loss_by_position);
    if (!runs.length) return;
    const places = runs[0].loss_by_position.position;
    traces.push({
      x: places.map((place) => place + 1),
      y: places.map((_, i) => mean(runs.map((one) => one.loss_by_position.bits[i]))),
      name: model, mode: "lines+markers", marker: { size: 5 },
      line: { color: color(index), dash: dash(index), width: 2.4 },
      hovertemplate: `${model}: %{y:.3f}<extra></extra>`,
    });
  });
  const powers = Array.from({ length: 20 }, (_, power) => 2 ** power);
  return [traces, layout({ type: "log", title: { text: "place in the context, tokens" }, tickvals: powers, ticktext: powers.map(String) }, { title: { text: "bits per token" } })];
}

const figures = { quality, training, gradients, serving, position };

function draw(name) {
  const place = document.getElementById(`figure-${name}`);
  const [traces, shape] = figures[name]();
  if (!traces.length) {
    place.textContent = "Nothing was measured for this figure.";
    place.style.padding = "1rem";
    return;
  }
  Plotly.react(place, traces, shape, { responsive: true, displaylogo: false, displayModeBar: false });
}

function drawAll() {
  document.querySelectorAll(".swatch").forEach((dot) => {
    dot.style.background = color(Number(dot.dataset.model));
  });
  Object.keys(figures).forEach(draw);
}

document.querySelectorAll(".choice").forEach((group) => {
  group.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    group.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    choices[group.dataset.figure][group.dataset.key] = button.dataset.value;
    draw(group.dataset.figure);
  });
});

document.querySelectorAll("details").forEach((block) => {
  block.addEventListener("toggle", () => {
    block.querySelectorAll(".plot").forEach((plot) => Plotly.Plots.resize(plot));
  });
});

document.getElementById("copy").addEventListener("click", async (event) => {
  const range = document.createRange();
  range.selectNodeContents(document.getElementById("command"));
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  try {
    await navigator.clipboard.writeText(document.getElementById("command").textContent);
    event.target.textContent = "copied";
  } catch {
    event.target.textContent = "selected";
  }
});

dark.addEventListener("change", drawAll);
drawAll();
