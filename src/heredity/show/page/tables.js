// Tables of a run: brief or whole, sortable, with the meaning of each column behind its heading.

/** A plain table; columns are [title, function of a row, text?], for what has no declaration. */
function plainTable(columns, rows, options = {}) {
  const head = columns.map(([title, , text]) => h("th", { scope: "col", class: text ? null : "n" }, title));
  const body = rows.map((row) => h("tr", null, columns.map(([, cell, text], place) =>
    h(place ? "td" : "th", { class: text ? null : "n", scope: place ? null : "row" }, cell(row)))));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": options.label || "table" },
    h("table", { class: options.fit === false ? null : "fit" }, h("thead", null, h("tr", null, head)),
      h("tbody", null, body)));
}

/** A cell: the share of a whole beside the value, the interval below it. */
function cellOf(table, column, row) {
  const text = textOf(table, column.name, row);
  if (column.kind === "text") return arrow(text).split(/(?<=→ )/);
  const parts = /^(.*?)(?: \((.*?)\))?(?: (\[.*\]))?$/s.exec(text);
  return [bound(parts[1]), parts[2] ? h("small", null, ` ${bound(parts[2])}`) : null,
    parts[3] ? h("small", { class: "under" }, bound(parts[3])) : null];
}

/** Columns to show: the named ones that have values; key columns that never vary stand in the caption instead. */
function columnsOf(table, rows, names) {
  const chosen = names.map((name) => table.columns.find((column) => column.name === name));
  const fixed_ = chosen.filter((column) => column.key && new Set(rows.map((row) => row[column.name])).size === 1);
  if (fixed_.length === chosen.filter((column) => column.key).length) fixed_.pop();
  const shown = chosen.filter((column) => !fixed_.includes(column) &&
    (column.key || rows.some((row) => textOf(table, column.name, row) !== "")));
  const caption = fixed_.filter((column) => !["site", "instrument"].includes(column.name)).map((column) =>
    arrow(textOf(table, column.name, rows[0])));
  return [shown, caption.filter(Boolean).join(", ")];
}

/** A declared table; brief at first where it has brief columns. */
function declaredTable(table, rows) {
  const every = table.columns.map((column) => column.name);
  const view = { names: table.brief.length ? table.brief : every, by: null, down: true };
  const host = h("div", { class: "declared" });
  const fill = () => {
    const [columns, caption] = columnsOf(table, rows, view.names);
    const sorted = view.by ? [...rows].sort((a, b) => {
      const [x, y] = [a[view.by], b[view.by]];
      if (!known(x) || !known(y)) return known(y) - known(x);
      return (x < y ? -1 : x > y ? 1 : 0) * (view.down ? -1 : 1);
    }) : rows;
    const heads = columns.map((column) => {
      const mine = view.by === column.name;
      const sort = () => {
        Object.assign(view, mine ? { down: !view.down } : { by: column.name, down: column.kind !== "text" });
        fill();
        host.querySelector(`[data-column="${column.name}"]`).focus();
      };
      const unit = column.of ? ` In brackets: share of ${spaced(column.of)}.` : "";
      return h("th", { scope: "col", class: column.kind === "text" ? null : "n",
        "aria-sort": mine ? (view.down ? "descending" : "ascending") : null },
      h("button", { type: "button", "data-column": column.name, onclick: sort,
        ...hint(`${column.doc}${unit}`, null, null, null), "aria-description": `${column.doc}${unit}` },
      spaced(column.name), mine ? (view.down ? " ↓" : " ↑") : ""));
    });
    const body = sorted.map((row) => h("tr", { class: row.rule === "paper" ? "quiet" : null },
      columns.map((column, place) => h(place ? "td" : "th", { scope: place ? null : "row",
        class: column.kind === "text" ? "text" : "n" }, cellOf(table, column, row)))));
    const brief = table.brief.length > 0 && table.brief.length < every.length;
    const more = brief ? h("button", { type: "button", class: "more", onclick: () => {
      view.names = view.names === table.brief ? every : table.brief;
      fill();
      host.querySelector(".more").focus();
    } }, view.names === table.brief ? `all ${every.length} columns` : "fewer columns") : null;
    host.replaceChildren(...[
      h("div", { class: rows.length > 24 ? "scroll tall" : "scroll", tabindex: 0, role: "region",
        "aria-label": table.doc },
        h("table", { class: columns.length > 7 ? "tight" : "fit" },
          caption ? h("caption", null, caption) : null, h("thead", null, h("tr", null, heads)),
            h("tbody", null, body))),
      more].filter(Boolean));
  };
  fill();
  return host;
}

/** One table of a section with its pictures: brief tables stand open, others are folded below their picture. */
function tableBlock(table, before, shut) {
  const rows = rowsOf(table.name);
  if (!rows.length) return null;
  const drawn = table.plot ? pictures(table, rows) : null;
  const [head, ...rest] = bound(table.doc).replace(/\.$/, "").split(/\. (?=[A-Z])/);
  const folds = `${drawn ? "As a table" : head} (${count(rows.length)} ${rows.length === 1 ? "row" : "rows"})`;
  const more = rest.length ? note(`${rest.join(". ")}.`) : null;
  const open = table.brief.length > 0 && !shut && !(drawn && rows.length > 12);
  const shown = open ? declaredTable(table, rows)
    : lazily(folds, () => [drawn ? null : more, declaredTable(table, rows)].filter(Boolean));
  if (!drawn && !open) return shown;
  return h("div", { class: "block", id: `table-${table.name}` }, h("h3", null, head), more, before, drawn, shown);
}
/** Something folded away, made when it is opened. */
function lazily(title, make) {
  const host = folded(title);
  host.addEventListener("toggle", () => host.open && host.children.length < 2 && host.append(...[make()].flat()));
  return host;
}
