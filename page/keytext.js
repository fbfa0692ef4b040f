// Says in words what a key is and what binds it.

import { inputError, number } from './dom.js';

const units = [[86400, 'day'], [3600, 'hour'], [60, 'minute'], [1, 'second']];
const mostModels = 20; // that are named
const amount = /^[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)$/;

// wholeNumber returns the whole number that somebody has entered, perhaps with commas between thousands.
export function wholeNumber(text, label) {
  const entry = text.trim().replace('−', '-');
  const n = Number(entry.replaceAll(',', ''));
  if (!amount.test(entry) || !Number.isSafeInteger(n)) throw inputError(`${label} must be a whole number, such as 5000.`);
  return n;
}

// count returns a number of things: "1 token", "5,000 tokens".
export function count(n, thing) { return `${number(n)} ${thing}${n === 1 ? '' : 's'}`; }

// per returns a time in seconds as it stands after "per" or "every": "minute", "5 minutes".
function per(seconds) {
  const [length, name] = units.find(([unit]) => seconds % unit === 0);
  return seconds === length ? name : count(seconds / length, name);
}

// providerOf returns with whom a user signs in, or undefined.
export function providerOf(userId) {
  return userId?.startsWith('google:') ? 'Google' : userId?.startsWith('apple:') ? 'Apple' : undefined;
}

// limitsOf returns terms with what a group of the config says.
export function limitsOf({ rate_limit: rate, rate_limit_window: window, refill, models, max_concurrent: most }) {
  const more = (models?.length ?? 0) - mostModels;
  return [
    ['Rate limit', rate === undefined ? 'None' : `${count(rate, 'request')} per ${per(window)}`],
    ['At a time', most === undefined ? 'Any number of requests' : `${count(most, 'request')} to the gateway`],
    ['Models', models === undefined ? 'All'
      : (models.slice(0, mostModels).join(', ') || 'None') + (more > 0 ? ` and ${more} more` : '')],
    ['Refill', refill === undefined ? 'None' : `Up to ${count(refill.tokens, 'token')}, ${often(refill.every)}`],
  ];
}

function often(every) {
  if (every === 'day') return 'each day at 00:00 UTC';
  if (every === 'month') return 'each month, on the first at 00:00 UTC';
  return `every ${per(every)} since the key was created`;
}
