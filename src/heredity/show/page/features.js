// Features with the text they fire on, shaded by activation, and the same text seen by their matches; case studies.
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
const chip = (text) => h("span", { class: "chip", title: text }, visible(text));

/** A line of tokens around a firing; the arrow keys walk through the values. */
function tokens(context, values, most, who, around = REACH) {
  const from = Math.max(0, context.position - around);
  const to = Math.min(context.tokens.length, context.position + around + 1);
  const spans = [];
  for (let place = from; place < to; place++) {
    const value = values[place] || 0;
    const level = most > 0 ? Math.min(1, Math.max(0, value / most)) : 0;
    const hot = level > 0.004;
    spans.push(h("span", { class: `t${hot ? " hot" : ""}${place === context.position ? " focus" : ""}`,
      style: hot ? { "--p": (0.12 + 0.88 * level).toFixed(3) } : null, "data-v": value },
        visible(context.tokens[place])));
  }
  const words = ({ dataset: { v } }) =>
    `${who}: ${fixed(+v)}${most > 0 ? ` (${percent(+v / most)} of its highest)` : ""}`;
  let at = context.position - from;
  return h("div", {
    class: "tokens", dir: "ltr", tabindex: 0, role: "group",
    "aria-label": `Text as ${who} sees it; arrow keys read the activations`,
    onpointermove: (event) => {
      const span = event.target.closest(".t");
      if (span) showTip(words(span), event.clientX, event.clientY);
      else hideTip();
    },
    onpointerleave: hideTip,
    onblur: hideTip,
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      at = Math.max(0, Math.min(spans.length - 1, at + step));
      const box = spans[at].getBoundingClientRect();
      showTip(`${spans[at].textContent.trim() || "white space"}\n${words(spans[at])}`, box.left, box.bottom - 12);
    },
  }, from > 0 ? "…" : "", spans, to < context.tokens.length ? "…" : "");
}

const idOf = (one) => `${one.model}/${one.feature}`;
const othersOf = (shown) => shown.family.filter((member) => member.model !== shown.model);

function contextBlock(shown, context, place) {
  const row = (one) => h("div", { class: "row" }, h("div", { class: "who", title: idOf(one) }, idOf(one)),
    tokens(context, context.values[one.model], one.max, idOf(one)));
  const others = othersOf(shown).filter((member) => context.values[member.model]);
  return h("div", { class: "context" },
    context.corpus === shown.contexts[place - 1]?.corpus ? null : h("div", { class: "corpus" }, `in ${context.corpus}`),
    row(shown), others.map(row));
}

/** Name of the edge between two models, in whichever direction it runs. */
function edgeBetween(a, b) {
  const edges = edgesNow();
  return [`${a}->${b}`, `${b}->${a}`].find((name) => edges[name]);
}
/** Whether a match, or one on the way to it, stays below the threshold of its edge. */
function missed(shown, member) {
  const threshold = edgesNow()[edgeBetween(member.via, member.model)]?.threshold;
  if (known(threshold) && !(member.r > threshold)) return true;
  const before = othersOf(shown).find((one) => one.model === member.via);
  return Boolean(before) && missed(shown, before);
}
function matchChips(shown) {
  return h("div", { class: "chips" }, othersOf(shown).map((member) => {
    const before = othersOf(shown).find((one) => one.model === member.via);
    const lost = Boolean(before) && missed(shown, before);
    const below = missed(shown, member);
    const along = arrow(edgeBetween(member.via, member.model) || "");
    const words = lost ? `not followed to ${member.model}: the match in ${member.via} is below the threshold`
      : `${idOf(member)}, r = ${fixed(member.r, 3)}${along ? ` along ${along}` : ""}`
        + (below ? ", below the threshold" : "");
    return h("span", { title: words, class: below ? "below" : null }, `${member.model} `,
      h("b", null, lost ? "–" : known(member.r) ? fixed(member.r, 2) : "none"));
  }));
}

/** The description of a feature, how well it predicts, and the feature it was made for. */
function described(one) {
  if (!one) return null;
  const origin = one.carried ? `from ${one.origin_model}/${one.origin_feature}`
    : one.re_explained ? "its own; a parent’s did not fit" : "";
  const facts = [known(one.description) && `score ${fixed(one.simulation)}`, origin].filter(Boolean);
  return h("span", { class: "said" }, known(one.description) ? [h("q", null, one.description), " "]
    : `No description: ${(one.failure || "").replaceAll("_", " ")}. `, h("small", null, facts.join(" · ")));
}
function descriptionNote(one) {
  if (!one || !known(one.description)) return "";
  const others = ["detection", "fuzzing"].filter((name) => known(one[name])).map((name) =>
    `${name} ${fixed(one[name])}`);
  const judge = one.by === "offline" ? "statistics of the text" : one.by;
  return `Described by ${judge}: what the description predicts has r ${fixed(one.simulation)} with the activations `
    + `(simulation score)${others.length ? `; ${others.join(", ")}, where 0 is guessing` : ""}. `;
}

function featureCard(shown, open) {
  const first = shown.contexts[0];
  const peek = first ? tokens(first, first.values[shown.model], shown.max, "", 5) : null;
  for (const name of ["tabindex", "role", "aria-label"]) peek?.removeAttribute(name);
  const card = h("details", { class: "feature" }, h("summary", null, h("span", { class: "id" }, idOf(shown)),
    h("span", { class: "peek", "aria-hidden": "true" }, peek), matchChips(shown), described(shown.label)));
  const fill = () => {
    if (card.querySelector(".body")) return;
    card.append(h("div", { class: "body" },
      note(`Fires on ${rate(shown.density)} of tokens; highest activation ${fixed(shown.max)}. `,
        descriptionNote(shown.label)),
      shown.contexts.length ? shown.contexts.map((context, place) => contextBlock(shown, context, place))
        : note("No contexts were kept."),
      shown.card ? facts(shown, shown.card) : null));
    card.querySelectorAll("figure").forEach((figure) => figure.redraw());
  };
  card.addEventListener("toggle", () => card.open && fill());
  if (open) fill();
  card.open = Boolean(open);
  return card;
}

/** Tokens, strengths and predictions of a feature, and its weaker firings. */
function facts(shown, card) {
  const weight = (one) => (one ? `${one.weight > 0 ? "+" : ""}${fixed(one.weight)}` : "");
  const pushed = card.promoted.map((one, place) => [one, card.suppressed[place]]);
  const fired = plainTable([["token", (row) => chip(row.token), true], ["activation", (row) => percent(row.share)],
    ["firings", (row) => count(row.firings)], ["mean", (row) => fixed(row.mean)],
      ["of all", (row) => percent(row.fired)]],
  card.tokens, { label: `Tokens of ${idOf(shown)}` });
  const predicts = card.no_logits ? note(`Not known: ${card.no_logits}`) : [plainTable([
    ["likelier", (row) => chip(row[0].token), true], ["logit", (row) => weight(row[0])],
    ["less likely", (row) => (row[1] ? chip(row[1].token) : ""), true], ["logit", (row) => weight(row[1])]],
  pushed, { label: `Predictions of ${idOf(shown)}` }),
  note("On the direct path, an activation of 1, before the scale of the final norm.")];
  const weaker = card.weaker.map((level) => [h("h4", null, `Activation ${fixed(level.low)} to ${fixed(level.high)}`),
    level.contexts.map((context) => h("div", { class: "row" }, h("div", { class: "who" }, context.corpus),
      tokens(context, context.values, shown.max, idOf(shown), 8)))]);
  return [
    weaker.length ? h("details", { class: "weaker" }, h("summary", null, "Weaker firings"), weaker) : null,
    h("div", { class: "facts" }, h("div", null, h("h4", null, "Tokens it fires on"), fired,
      note("Activation: the token’s share of all its activation; mean: of the firings; of all: of its occurrences.")),
    h("div", null, h("h4", null, `${count(card.firings)} firings by activation`), strengths(shown, card.histogram)),
    h("div", null, h("h4", null, "What it predicts"), predicts))];
}

/** Firings by activation, on a logarithmic scale that shows a single one. */
function strengths(shown, sizes) {
  const step = shown.max / sizes.length;
  return chart(`Firings of ${idOf(shown)} by activation, logarithmic`, (svg, width) => {
    const box = { left: 40, right: width - 14, top: 12, bottom: 150 };
    const most = Math.log10(Math.max(10, ...sizes));
    const X = scale(0, shown.max, box.left, box.right);
    const Y = scale(-0.3, most, box.bottom, box.top);
    axes(svg, box, { scale: X, ticks: ticks(0, shown.max, 4), format: (value) => `${value}`, label: "activation" },
      { scale: Y, ticks: [0, 1, 2, 3, 4, 5, 6].filter((power) => power <= most),
        format: (power) => compact(10 ** power) });
    sizes.forEach((size, bin) => {
      if (!size) return;
      const text = `${count(size)} firings at ${fixed(bin * step)} to ${fixed((bin + 1) * step)}`;
      const top = Y(Math.log10(size));
      svg.append(rect(X(bin * step) + 0.5, top, X(step) - X(0) - 1, box.bottom - top, color(shown.model),
        { "fill-opacity": 0.85, ...hint(text), tabindex: null }));
    });
    return box.bottom + 40;
  });
}

const LISTS = {
  "most persistent": "Features of the start model with the highest r all the way down, to every model without a child.",
  "most changed": "Active features of the start model whose best match in every child is weakest, unstable ones "
    + "included. What changed most by verdicts is in the table of stable features that differ most.",
};
const inspected = () => DATA.inspector[state.site]?.[state.instrument] || { cards: [], cases: {} };
function featureSection() {
  const cards = inspected().cards.filter((card) => !card.list.startsWith("case:"));
  return [note("The text that features fire on most, shaded by activation, and under it the same text as seen by ",
    "their matches. Figures are the r of the match along its edge, dotted where it is below the threshold; ",
    "a dash where the match before it is."),
  [...new Set(cards.map((card) => card.list))].map((name, number) => [
    h("h3", null, name[0].toUpperCase() + name.slice(1)),
    note(LISTS[name] || (name.startsWith("emerged") ? "Active features without a match in a parent."
      : "By verdicts, the surest first; its evidence is in the table of lost and new features.")),
    cards.filter((card) => card.list === name).map((card, place) => featureCard(card, !place && !number))])];
}

const times = (value) => (known(value) ? `${value < 9.95 ? fixed(value, 1) : count(value)}×` : "–");
function caseSection() {
  return Object.entries(inspected().cases).map(([name, one]) => {
    const members = Object.values(one.models).filter((row) => known(row.feature));
    const best = Object.entries(one.best).filter(([, fit]) => fit).map(([model, fit]) => ({ model, ...fit }));
    const fits = [["LLR by activation", (row) => fixed(row.llr)], ["LLR by count", (row) => fixed(row.llr_counted)],
      ["sensitivity", (row) => fixed(row.sensitivity)], ["active elsewhere", (row) => times(row.elsewhere)],
      ["firings on them", (row) => count(row.hits)]];
    const id = ["feature", (row) => h("span", { class: "id" }, idOf(row)), true];
    const status = { lost: " below the threshold", absent: " below the threshold", beyond: " match of a miss" };
    const via = (row) => [row.via || "–", status[row.status] ? h("small", null, status[row.status]) : ""];
    const { kind, value } = one.hypothesis;
    const set = { regex: "Tokens that match ", script: "Tokens in the script ",
      predicate: "Positions chosen by " }[kind];
    const shown = one.tokens.map(chip);
    const some = set && one.set_size > one.tokens.length ? `${count(one.set_size)} of them, most often ` : "";
    return [h("h3", null, name),
      h("p", { class: "verdict" }, arrow(one.verdict[0].toUpperCase() + one.verdict.slice(1)),
        /[.!?]$/.test(one.verdict) ? "" : ".",
        known(one.mean_r) ? ` Mean r along the lineage ${fixed(one.mean_r)}.` : ""),
      note(set ? [set, chip(`${value}`), some] : kind === "strings" ? "Last tokens of " : "Tokens ",
        shown, ` ${rate(one.base_rate)} of the sample.`,
        one.not_in_vocabulary.length ? [" No single token: ", one.not_in_vocabulary.map(chip)] : ""),
      members.length ? plainTable([["model", (row) => row.model, true], id, ...fits, ["r", (row) => fixed(row.r)],
        ["with its match in", via, true]], members, { label: `Case ${name}` }) : null,
      one.misses.map((miss) => note(`Nearest miss in ${miss.model}: `, h("span", { class: "id" }, idOf(miss)),
        `, r = ${fixed(miss.r)}${known(miss.threshold) ? ` (threshold ${fixed(miss.threshold)})` : ""}, `
        + `LLR ${fixed(miss.llr)}, ${times(miss.elsewhere)} as active on other tokens.`)),
      best.length ? folded("The feature that fits best in each model, whatever it matches",
        plainTable([["model", (row) => row.model, true], id, ...fits, ["r with the family’s", (row) => fixed(row.r)]],
          best, { label: `Best features of case ${name}` })) : null,
      inspected().cards.filter((card) => card.list === `case:${name}`).map((card) => featureCard(card, false))];
  });
}
