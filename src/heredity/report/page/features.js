// Features with the text they fire on, shaded by activation, and the same text seen by their matches.
const GLYPHS = { "\n": "↵", "\r": "␍", "\t": "→" };
const ODD = /([\n\r\t ]|[\u0000-\u001f\u007f-\u00a0\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffd])/;
const REACH = 20; // tokens shown on either side of the firing

/** The text of a token with white space and invisible characters shown; copying gives the text itself. */
function visible(text) {
  return text.split(ODD).filter((part) => part !== "").map((part) => {
    if (part === " ") return h("span", { class: "sp" }, part);
    if (!ODD.test(part) || part === "\ufffd") return part;
    const glyph = GLYPHS[part] || `⟨${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
    return h("span", { class: "gl", "data-g": glyph }, h("span", null, part));
  });
}

/** A line of tokens; the arrow keys walk through the values. */
function tokens(context, values, most, who, around = REACH) {
  const [from, to] = [Math.max(0, context.focus - around), Math.min(context.tokens.length, context.focus + around + 1)];
  const spans = [];
  for (let place = from; place < to; place++) {
    const value = values[place] || 0;
    const level = most > 0 ? Math.min(1, Math.max(0, value / most)) : 0;
    spans.push(h("span", { class: `t${level > 0.004 ? " hot" : ""}${place === context.focus ? " focus" : ""}`,
      style: level > 0.004 ? { "--p": (0.12 + 0.88 * level).toFixed(3) } : null, "data-v": value }, visible(context.tokens[place])));
  }
  const text = (span) => `${who}: ${fixed(+span.dataset.v, 2)}${most > 0 ? ` (${percent(+span.dataset.v / most)} of its highest)` : ""}`;
  let at = context.focus - from;
  const say = () => {
    const box = spans[at].getBoundingClientRect();
    showTip(`${spans[at].textContent.trim() || "white space"}\n${text(spans[at])}`, box.left, box.bottom - 12);
  };
  return h("div", {
    class: "tokens", dir: "ltr", tabindex: 0, role: "group", "aria-label": `Text as ${who} sees it; arrow keys read the activations`,
    onpointermove: (event) => {
      const span = event.target.closest(".t");
      if (span) showTip(text(span), event.clientX, event.clientY);
      else hideTip();
    },
    onpointerleave: hideTip,
    onblur: hideTip,
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      at = Math.max(0, Math.min(spans.length - 1, at + step));
      say();
    },
  }, from > 0 ? "…" : "", spans, to < context.tokens.length ? "…" : "");
}

function highest(highlight, model) {
  const match = highlight.matches.find((found) => found.model === model);
  return match?.max_act ?? Math.max(0, ...highlight.feature.contexts.flatMap((context) => context.others[model] || []));
}

function contextBlock(highlight, context, place) {
  const feature = highlight.feature;
  const line = (model, index, values, most) =>
    h("div", { class: "row" }, h("div", { class: "who", title: `${model}/${index}` }, `${model}/${index}`), tokens(context, values, most, `${model}/${index}`));
  const others = highlight.matches.filter((match) => context.others[match.model] && known(match.index));
  const before = highlight.feature.contexts[place - 1]?.corpus;
  return h("div", { class: "context" }, context.corpus === before ? null : h("div", { class: "corpus" }, `in ${context.corpus}`),
    line(feature.model, feature.index, context.values, feature.max_act),
    others.map((match) => line(match.model, match.index, context.others[match.model], highest(highlight, match.model))));
}

/** Whether a match, or one on the way to it, stays below the threshold of its edge. */
function missed(highlight, match) {
  const threshold = SUMMARY.edges[match.along]?.threshold;
  if (known(threshold) && !(match.r > threshold)) return true;
  const via = match.along.split("->").find((model) => model !== match.model);
  const before = highlight.matches.find((one) => one.model === via);
  return Boolean(before) && missed(highlight, before);
}

function matchChips(highlight) {
  return h("div", { class: "chips" }, highlight.matches.map((match) => {
    const below = missed(highlight, match);
    const where = known(match.index) ? `${match.model}/${match.index}` : match.model;
    const title = known(match.r) ? `${where}, r = ${fixed(match.r, 3)}${match.along ? ` along ${arrow(match.along)}` : ""}${below ? ", below the threshold, or reached from a match that is" : ""}` : `no match in ${match.model}`;
    return h("span", { title, class: below ? "below" : null }, `${match.model} `, h("b", null, known(match.r) ? fixed(match.r, 2) : "none"));
  }));
}

/** What is said of a feature, how well it predicts, and which feature it was said of. */
function said(label) {
  if (!label) return null;
  const origin = label.carried ? `from ${label.origin}` : label.re_explained ? "its own; a parent’s did not fit" : "";
  return h("span", { class: "said" }, known(label.description) ? [h("q", null, label.description), " "] : `No description: ${label.failure.replaceAll("_", " ")}. `,
    h("small", null, [known(label.description) && `score ${fixed(label.simulation)}`, origin].filter(Boolean).join(" · ")));
}

function featureCard(highlight, open) {
  const feature = highlight.feature;
  const first = feature.contexts[0];
  const card = h("details", { class: "feature" },
    h("summary", null, h("span", { class: "id" }, feature.id),
      h("span", { class: "peek", "aria-hidden": "true" }, first ? peek(first, feature.max_act) : null), matchChips(highlight), said(feature.label)));
  const fill = () => {
    if (card.querySelector(".body")) return;
    card.append(h("div", { class: "body" },
      h("p", { class: "note" }, `Fires on ${rate(feature.density)} of tokens; highest activation ${fixed(feature.max_act, 2)}. `, labelNote(feature.label), highlight.note),
      feature.contexts.length ? feature.contexts.map((context, place) => contextBlock(highlight, context, place)) : h("p", { class: "note" }, "No contexts were kept."),
      feature.card ? facts(feature, feature.card) : null));
  };
  card.addEventListener("toggle", () => card.open && fill());
  if (open) fill();
  card.open = Boolean(open);
  return card;
}

function labelNote(label) {
  if (!label || !known(label.description)) return "";
  const judge = label.by === "offline" ? "statistics of the text" : label.by;
  const others = [["detection", label.detection], ["fuzzing", label.fuzzing]].filter((one) => known(one[1])).map(([name, value]) => `${name} ${fixed(value)}`);
  return `Described by ${judge}: what the description predicts has r ${fixed(label.simulation)} with the activations (simulation score)${others.length ? `; ${others.join(", ")}, where 0 is guessing` : ""}. `;
}

/** Tokens, strengths and predictions of a feature, and its weaker firings. */
function facts(feature, card) {
  const chip = (text) => h("span", { class: "chip", title: text }, visible(text));
  const tokensTable = table([["token", (row) => chip(row.token)], ["activation", (row) => percent(row.share)], ["firings", (row) => count(row.firings)], ["mean", (row) => fixed(row.mean)], ["of all", (row) => percent(row.fired)]],
    card.tokens, { label: `Tokens of ${feature.id}`, tight: true });
  const pushed = card.promoted.map((one, place) => [one, card.suppressed[place]]);
  const weight = (one) => (one ? `${one.weight > 0 ? "+" : ""}${fixed(one.weight)}` : "");
  const predicts = card.no_logits ? note(`Not known: ${card.no_logits}`)
    : [table([["likelier", (row) => chip(row[0].token)], ["logit", (row) => weight(row[0])], ["less likely", (row) => (row[1] ? chip(row[1].token) : ""), TEXT], ["logit", (row) => weight(row[1])]], pushed, { label: `Predictions of ${feature.id}`, tight: true }),
      note("On the direct path, an activation of 1, before the scale of the final norm.")];
  return [
    card.weaker.length ? h("details", { class: "weaker" }, h("summary", null, "Weaker firings"), card.weaker.map((level) => [
      h("h4", null, `Activation ${fixed(level.low)} to ${fixed(level.high)}`),
      level.contexts.map((context) => h("div", { class: "row" }, h("div", { class: "who" }, context.corpus), tokens(context, context.values, feature.max_act, feature.id, 8)))])) : null,
    h("div", { class: "facts" }, h("div", null, h("h4", null, "Tokens it fires on"), tokensTable,
      note("Activation: the token’s share of all its activation; mean: of the firings; of all: of the token’s occurrences.")),
      h("div", null, h("h4", null, `${count(card.firings)} firings by activation`), strengths(feature, card)),
      h("div", null, h("h4", null, "What it predicts"), predicts)),
  ];
}

/** Firings by activation, on a logarithmic scale that shows a single one. */
function strengths(feature, card) {
  const sizes = card.histogram;
  const step = feature.max_act / sizes.length;
  return chart(`Firings of ${feature.id} by activation, logarithmic`, (svg, width) => {
    const box = { left: 40, right: width - 14, top: 12, bottom: 150 };
    const most = Math.log10(Math.max(10, ...sizes));
    const X = scale(0, feature.max_act, box.left, box.right);
    const Y = scale(-0.3, most, box.bottom, box.top);
    axes(svg, box, { scale: X, ticks: ticks(0, feature.max_act, 5), format: (value) => `${value}`, label: "activation" },
      { scale: Y, ticks: [0, 1, 2, 3, 4, 5, 6].filter((power) => power <= most), format: (power) => compact(10 ** power) });
    sizes.forEach((size, bin) => size && svg.append(rect(X(bin * step) + 0.5, Y(Math.log10(size)), X(step) - X(0) - 1, box.bottom - Y(Math.log10(size)), color(feature.model), { "fill-opacity": 0.85,
      ...hint(`${count(size)} firings at ${fixed(bin * step)} to ${fixed((bin + 1) * step)}`), tabindex: null })));
    return box.bottom + 40;
  });
}

/** A few tokens around the firing, without the keyboard. */
function peek(context, most) {
  const line = tokens(context, context.values, most, "", 5);
  line.removeAttribute("tabindex");
  line.removeAttribute("role");
  line.removeAttribute("aria-label");
  return line;
}

const LISTS = {
  "most persistent": "Features of the start model with the highest r all the way down.",
  "most changed": "Active features of the start model whose best match in every child is weakest.",
};

function featureLists(names) {
  return names.map((name, number) => {
    const found = VIEW.highlights.filter((highlight) => highlight.list === name);
    return [h("h3", null, name[0].toUpperCase() + name.slice(1)), h("p", { class: "note" }, LISTS[name] || "Active features that match nothing in a parent."),
      found.map((highlight, place) => featureCard(highlight, !place && !number))];
  });
}
