"use strict";
(() => {
  // A row of the images: path, class index of the truth, predictions [class index, score], error,
  // thumbnail, link.
  const [PATH, TRUTH, PREDICTIONS, ERROR, THUMBNAIL, LINK] = [0, 1, 2, 3, 4, 5];
  const PAGE = 120;

  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { labels, images } = data;

  function make(name, text = "", className = "") {
    const element = document.createElement(name);
    if (text) element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  // Control characters and what turns the direction of text would hide what a name is.
  const visible = (text) =>
    text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
  const nameOf = (index) => visible(labels[index]);
  const predictedOf = (image) => (image[PREDICTIONS].length ? image[PREDICTIONS][0][0] : null);
  const isRight = (image) => predictedOf(image) === image[TRUTH];
  const percent = (score) => `${(100 * score).toFixed(1)}%`;

  // What is shown: of which verdict ("" for all), truth and prediction (null for any), how many.
  const FIRST = { verdict: "wrong", truth: null, predicted: null, count: PAGE };
  let state = { ...FIRST };

  function matches(image) {
    const verdict = image[ERROR] !== null ? "errors" : isRight(image) ? "right" : "wrong";
    return (
      (!state.verdict || verdict === state.verdict) &&
      (state.truth === null || image[TRUTH] === state.truth) &&
      (state.predicted === null || predictedOf(image) === state.predicted)
    );
  }

  // The confusion matrix.

  const cells = new Map();
  const cellKey = (truth, predicted) => `${truth} ${predicted}`;

  function countPairs() {
    const pairs = new Map();
    for (const image of images) {
      if (!image[PREDICTIONS].length) continue;
      const key = cellKey(image[TRUTH], predictedOf(image));
      pairs.set(key, (pairs.get(key) ?? 0) + 1);
    }
    return pairs;
  }

  function matrixCell(truth, predicted, count) {
    const cell = make("td", "", truth === predicted ? "right" : "wrong");
    if (!count) return cell;
    const button = make("button", count.toLocaleString("en"));
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const taken = truth === predicted ? "recognised" : `taken for ${nameOf(predicted)}`;
    button.setAttribute("aria-label", `${count} of ${nameOf(truth)} ${taken}`);
    button.title = `${nameOf(truth)} ${taken}`;
    button.addEventListener("click", () => {
      const again = button.getAttribute("aria-pressed") === "true";
      change(again ? { ...FIRST } : { verdict: "", truth, predicted });
    });
    cells.set(cellKey(truth, predicted), button);
    cell.append(button);
    return cell;
  }

  function drawMatrix() {
    const pairs = countPairs();
    const table = make("table");
    const head = make("tr");
    const corner = make("td");
    head.append(corner);
    for (const index of data.matrix) {
      const column = make("th");
      column.scope = "col";
      const text = make("span", nameOf(index));
      text.title = nameOf(index);
      column.append(text);
      head.append(column);
    }
    const header = make("thead");
    header.append(head);
    const body = make("tbody");
    for (const truth of data.matrix) {
      const row = make("tr");
      const name = make("th", nameOf(truth));
      name.scope = "row";
      row.append(name);
      for (const predicted of data.matrix) {
        row.append(matrixCell(truth, predicted, pairs.get(cellKey(truth, predicted)) ?? 0));
      }
      body.append(row);
    }
    table.append(header, body);
    byId("matrix").replaceChildren(table);
    const all = new Set(images.flatMap((image) => [image[TRUTH], predictedOf(image)]));
    all.delete(null);
    if (data.matrix.length < all.size) {
      byId("matrix-note").textContent += ` Of ${all.size} labels these are confused most often.`;
    }
  }

  // The images.

  function card(image) {
    const item = make("li");
    const frame = make("div", "", "frame");
    const source = image[THUMBNAIL] === null ? image[LINK] : `data:image/jpeg;base64,${image[THUMBNAIL]}`;
    if (source !== null && image[ERROR] === null) {
      const picture = make("img");
      picture.loading = "lazy";
      picture.src = source;
      picture.alt = "";
      if (image[LINK] !== null) {
        const link = make("a");
        link.href = image[LINK];
        link.setAttribute("aria-label", `Open ${visible(image[PATH])}`);
        link.append(picture);
        frame.append(link);
      } else {
        frame.append(picture);
      }
    } else {
      frame.append(make("span", "no picture"));
    }
    const caption = make("div", "", "caption");
    caption.append(make("p", nameOf(image[TRUTH])));
    if (image[ERROR] !== null) {
      caption.append(make("p", visible(image[ERROR]), "error"));
    } else {
      const [index, score] = image[PREDICTIONS][0];
      const right = index === image[TRUTH];
      const said = right ? `recognised, ${percent(score)}` : `taken for ${nameOf(index)}, ${percent(score)}`;
      caption.append(make("p", said, right ? "" : "wrong"));
      const own = image[PREDICTIONS].findIndex(([each]) => each === image[TRUTH]);
      if (own > 0) {
        caption.append(make("p", `${nameOf(image[TRUTH])} is number ${own + 1}, ${percent(image[PREDICTIONS][own][1])}`, "file"));
      }
    }
    const file = make("p", visible(image[PATH]), "file");
    file.dir = "auto";
    caption.append(file);
    item.append(frame, caption);
    return item;
  }

  function show() {
    const found = images.filter(matches);
    byId("images").replaceChildren(...found.slice(0, state.count).map(card));
    byId("status").textContent = `${found.length.toLocaleString("en")} of ${images.length.toLocaleString("en")} images`;
    const more = found.length - state.count;
    byId("more").hidden = more <= 0;
    byId("more").textContent = `Show ${Math.min(PAGE, more)} more`;
    byId("verdict").value = state.verdict;
    byId("truth").value = state.truth ?? "";
    byId("predicted").value = state.predicted ?? "";
    const pressed = cellKey(state.truth, state.predicted);
    for (const [key, button] of cells) button.setAttribute("aria-pressed", String(key === pressed));
  }

  function change(values) {
    state = { ...state, ...values, count: PAGE };
    show();
  }

  // The controls.

  function fill(id, indexes) {
    const sorted = [...indexes].sort((a, b) => nameOf(a).localeCompare(nameOf(b)));
    for (const index of sorted) {
      const option = make("option", nameOf(index));
      option.value = index;
      byId(id).append(option);
    }
    const number = (value) => (value === "" ? null : Number(value));
    byId(id).addEventListener("change", () => change({ [id]: number(byId(id).value) }));
  }

  fill("truth", new Set(images.map((image) => image[TRUTH])));
  fill("predicted", new Set(images.map(predictedOf).filter((index) => index !== null)));
  byId("verdict").addEventListener("change", () => change({ verdict: byId("verdict").value }));
  byId("reset").addEventListener("click", () => change({ ...FIRST }));
  byId("more").addEventListener("click", () => {
    state.count += PAGE;
    show();
  });
  drawMatrix();
  if (!images.some(matches)) state.verdict = "";
  show();
})();
