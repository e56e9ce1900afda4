"use strict";
// Numbers, times and durations as a reader takes them in at a glance.

function shortNumber(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) {
    if (size >= 1e6 && size < 1e15) {
      const [divisor, letter] = size < 1e9 ? [1e6, "M"] : size < 1e12 ? [1e9, "G"] : [1e12, "T"];
      return trimmed((value / divisor).toPrecision(4)) + letter;
    }
    return value.toExponential(2).replace(/\.?0+e/, "e");
  }
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return trimmed(value.toPrecision(4));
}

function trimmed(digits) {
  return digits.includes(".") ? digits.replace(/\.?0+$/, "") : digits;
}

function withUnit(value, unit) {
  if (unit === "share" && Number.isFinite(value)) return trimmed((100 * value).toPrecision(3)) + " %";
  return shortNumber(value) + (unit ? " " + unit : "");
}

// Seconds as "3 d 4 h", "2 h 5 min", "40 s": two units at most.
function describeDuration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let rest = Math.max(0, Math.round(seconds));
  const parts = [];
  for (const [name, size] of units) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count || (name === "s" && !parts.length)) parts.push(`${count} ${name}`);
    else if (parts.length) break;
    if (parts.length === 2) break;
  }
  return parts.join(" ");
}

function describeTime(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  const date = new Date(1000 * seconds);
  const pad = (number) => String(number).padStart(2, "0");
  return (
    `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ` +
    `${pad(date.getHours())}:${pad(date.getMinutes())}`
  );
}

function describeHours(hours) {
  if (hours === null || hours === undefined) return "unknown";
  return hours < 0.1 ? hours.toFixed(3) : hours.toLocaleString("en", { maximumFractionDigits: 1 });
}
