// Says in words what binds an API key, and reads numbers.

import { inputError, number } from './dom.js';

const units = [[86400, 'day'], [3600, 'hour'], [60, 'minute'], [1, 'second']];
const mostModels = 20; // that are named

// wholeNumber returns the whole number that was entered, perhaps with commas between thousands.
export function wholeNumber(text, label) {
  const entry = text.trim().replace('−', '-');
  const n = Number(entry.replaceAll(',', ''));
  if (/^[+-]?(\d+|\d{1,3}(,\d{3})+)$/.test(entry) && Number.isSafeInteger(n)) return n;
  throw inputError(`${label} must be a whole number, such as 5000.`);
}

// count returns a number of things: "1 token", "5,000 tokens".
export function count(n, thing) { return `${number(n)} ${thing}${n === 1 ? '' : 's'}`; }

// per returns a time as it stands after "per" or "every": "minute", "5 minutes".
function per(seconds) {
  const [length, name] = units.find(([unit]) => seconds % unit === 0);
  return seconds === length ? name : count(seconds / length, name);
}

// limitsOf returns terms with what a group of the config says.
export function limitsOf({ rate_limit: rate, rate_limit_window: window, refill, models, max_concurrent: most }) {
  const more = models?.length - mostModels;
  return [
    ['Rate limit', rate === undefined ? 'None' : `${count(rate, 'request')} per ${per(window)}`],
    ['At a time', most === undefined ? 'Any number of requests' : `${count(most, 'request')} to the gateway`],
    ['Models', models ? models.slice(0, mostModels).join(', ') || 'None' : 'All', more > 0 ? ` and ${more} more` : ''],
    ['Refill', refill ? `Up to ${count(refill.tokens, 'token')}, ${often(refill.every)}` : 'None'],
  ];
}

function often(every) {
  if (every === 'day') return 'each day at 00:00 UTC';
  if (every === 'month') return 'on the first of each month at 00:00 UTC';
  return `every ${per(every)} since the key was created`;
}
