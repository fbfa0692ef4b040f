// Says in words what an API key is and what binds it.

import { el, inputError, mask, number, time } from './dom.js';

// wholeNumber returns the whole number that was entered, perhaps with commas between thousands.
export function wholeNumber(text, label) {
  const entry = text.trim().replace('−', '-');
  const n = Number(entry.replaceAll(',', ''));
  if (/^[+-]?(\d+|\d{1,3}(,\d{3})+)$/.test(entry) && Number.isSafeInteger(n)) return n;
  throw inputError(`${label} must be a whole number, such as 5000.`);
}

// given returns what was entered in the fields of a form; what is empty is undefined.
export const given = (values) =>
  Object.fromEntries(Object.entries(values).map(([name, value]) => [name, value.trim() || undefined]));

// count returns a number of things: "1 token", "5,000 tokens".
export const count = (n, thing) => `${number(n)} ${thing}${n === 1 ? '' : 's'}`;

// factsOf and boundsOf return what a key is, and what its group in the present config grants: terms, or nothing.
export function factsOf({ userId, createdAt, expiresAt, sharesWith }) {
  return [['User', userId ?? 'A visitor'], ['Created', time(createdAt)],
    ['Expires', expiresAt ? time(expiresAt) : 'Never'],
    sharesWith && ['Shares with', el('code', {}, mask(sharesWith)), ': balance, group, limits and usage']];
}

export function boundsOf({ group, refillsAt }, groups) {
  if (!groups) return [['Group', group], ['Limits', 'Unknown, since the config is broken']];
  if (!groups.has(group)) {
    return [['Group', group, el('span', { class: 'bad' }, ' is not in the config any more. The key is refused.')]];
  }
  const { rate_limit: rate, rate_limit_window: window, refill, models, max_concurrent: most } = groups.get(group);
  return [
    ['Group', group],
    ['Rate limit', rate === undefined ? 'None' : `${count(rate, 'request')} per ${per(window)}`],
    ['At a time', most === undefined ? 'Any number of requests' : `${count(most, 'request')} to the gateway`],
    ['Models', models ? models.join(', ') || 'None' : 'All'],
    ['Refill', refill ? `Up to ${count(refill.tokens, 'token')}, ${often(refill.every)}` : 'None'],
    refillsAt && ['Next refill', time(refillsAt)],
  ];
}

// per returns a time as it stands after "per" or "every": "minute", "5 minutes".
function per(seconds) {
  const [length, name] = [[86400, 'day'], [3600, 'hour'], [60, 'minute'], [1, 'second']]
    .find(([unit]) => seconds % unit === 0);
  return seconds === length ? name : count(seconds / length, name);
}

const calendar = { day: 'each day at 00:00 UTC', month: 'on the first of each month at 00:00 UTC' };
const often = (every) => calendar[every] ?? `every ${per(every)} since the key was created`;
