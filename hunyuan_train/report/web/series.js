"use strict";
// Curves made ready to be drawn: smoothed, against another axis, without what a log axis cannot show.

// The moving average that TensorBoard has: exponential, free of the bias towards its first value.
function smooth(values, weight) {
  if (!weight) return values;
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = sum * weight + (1 - weight) * value;
    total = total * weight + (1 - weight);
    return sum / total;
  });
}

// Hours since the run began at each of some steps, from the time that lines were logged at.
function hoursAt(steps, time, started) {
  if (!time || !time.steps.length) return null;
  const origin = started ?? time.mean[0];
  return steps.map((step) => {
    const after = time.steps.findIndex((one) => one >= step);
    const index = after < 0 ? time.steps.length - 1 : after;
    const value = time.mean[index];
    return value === null ? null : (value - origin) / 3600;
  });
}

// A curve's points against the axis that is asked for: { x, mean, low, high }.
function placeCurve(curve, view, run) {
  let x = curve.steps;
  if (view.axis === "hours") x = hoursAt(curve.steps, run.curves.time, run.state.started) ?? curve.steps;
  const keep = [];
  for (let index = 0; index < x.length; index++) {
    if (x[index] === null || (view.isLogX && x[index] <= 0)) continue;
    if (keep.length && x[index] <= x[keep.at(-1)]) keep.pop(); // steps done again after a resume
    keep.push(index);
  }
  const pick = (values) => keep.map((index) => forLog(values[index], view.isLogY));
  const placed = { x: keep.map((index) => x[index]), mean: pick(curve.mean) };
  if (curve.low) Object.assign(placed, { low: pick(curve.low), high: pick(curve.high) });
  return placed;
}

function forLog(value, isLog) {
  return isLog && value !== null && value <= 0 ? null : value;
}

// The index of the point that is nearest to a place on the axis and has a value; -1 if none has.
function nearestPoint(xs, values, place) {
  let best = -1;
  for (let index = 0; index < xs.length; index++) {
    if (values[index] === null || values[index] === undefined) continue;
    if (best < 0 || Math.abs(xs[index] - place) < Math.abs(xs[best] - place)) best = index;
  }
  return best;
}
