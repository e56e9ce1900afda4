"use strict";
// Builds the page. Text of others goes in as text, never as HTML.

// element("p", { class: "note" }, "text", otherElement): attributes that are functions are listeners.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Text in which flags, such as --seed, do not break at their dashes.
function withFlags(text) {
  return text.split(/(--[a-z_]+)/).map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

// Puts new children into an element, unless they would look as those that are there: what a reader
// has unfolded, selected or focused stays.
function refill(target, children) {
  const fresh = element(target.tagName.toLowerCase());
  fresh.append(...children.filter(Boolean));
  if (target.lastHtml === fresh.innerHTML) return;
  target.lastHtml = fresh.innerHTML;
  target.replaceChildren(...fresh.childNodes);
}

function table(rows, { caption, head = null, isTitled = true }) {
  const made = element("table", {}, element("caption", { class: isTitled ? "" : "unseen" }, caption));
  if (head) {
    const cells = head.map((text) => element("th", { scope: "col" }, text));
    made.append(element("thead", {}, element("tr", {}, ...cells)));
  }
  const body = element("tbody");
  for (const [name, ...values] of rows) {
    const cells = values.map((value) => element("td", { class: isShort(value) ? "short" : null }, value));
    body.append(element("tr", {}, element("th", { scope: "row" }, name), ...cells));
  }
  made.append(body);
  return element("div", { class: "wide", tabindex: "0", role: "group", "aria-label": caption }, made);
}

// Whether a cell looks better whole than broken into lines.
function isShort(value) {
  return typeof value !== "string" || value.length < 30;
}

// A control with its words around it, so that the words are its label.
function labelled(words, control, { isBefore = true } = {}) {
  return element("label", {}, ...(isBefore ? [words, " ", control] : [control, " ", words]));
}

function select(options, value, change) {
  const made = element("select", { change: (event) => change(event.target.value) });
  for (const [name, words] of options) {
    made.append(element("option", { value: name, selected: name === value }, words));
  }
  return made;
}

function checkbox(isChecked, change) {
  return element("input", { type: "checkbox", checked: isChecked, change: (event) => change(event.target.checked) });
}

// One of the colours that the style sheet has for both schemes.
function lineColour(index) {
  const names = 8;
  return getComputedStyle(document.documentElement).getPropertyValue(`--line-${index % names}`).trim();
}

function pageColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
