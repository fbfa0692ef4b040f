// What can be done with an API key. A change that is asked for again after an error has the same Idempotency-Key.

import { Attempt, query, request } from './api.js';
import { dialog, el, field, mask, newID, number, showStatus, time } from './dom.js';
import { count, providerOf, wholeNumber } from './keytext.js';

// actionsOf returns the actions on the key of a card: buttons, and what brings each in line with the key.
export function actionsOf(card) {
  const attempts = new Map(); // by action
  const send = async (action, method, url, body) => {
    if (!attempts.has(action)) attempts.set(action, new Attempt());
    return (await attempts.get(action).send(method, url, body)).body;
  };
  const key = { card, name: mask(card.key), send, say: (sentence) => showStatus(card.node, sentence) };
  // patch changes members of the key, and shows what has become of it and of those that share its balance.
  key.patch = async (action, members, { reason = '' } = {}) => {
    if (reason.trim()) members.reason = reason.trim();
    const body = await send(action, 'PATCH', card.url, members);
    const { sharesWith } = card.entry;
    card.update({ ...body, apiKey: card.key, sharesWith });
    const { group, tokensLeft, tokensHeld, refillsAt } = body;
    for (const other of body.error ? [] : card.view.cards) {
      if (other !== card && !other.entry.error && balanceOf(other) === balanceOf(card)) {
        other.update({ ...other.entry, group, tokensLeft, tokensHeld, refillsAt });
      }
    }
    return body;
  };
  const make = (name, action, props, update = () => {}) => ({ node: card.button(name, () => action(key), props), update });
  const hideIfMalformed = (node) => { node.hidden = card.entry.error !== undefined; };
  return [
    make('Top up', topUp, {}, hideIfMalformed), make('Label', label), make('Move', move),
    make('Rotate', rotate, {}, hideIfMalformed),
    make('', enableOrDisable, {}, (node) => {
      node.firstChild.data = isDisabled(card) ? 'Enable' : 'Disable';
      node.className = isDisabled(card) ? '' : 'danger';
    }),
    make('Revoke', revoke, { class: 'danger' }),
  ];
}

const isDisabled = (card) => card.entry.enabled === false;
const balanceOf = (card) => card.entry.sharesWith ?? card.key;
const reason = () => field('Reason', { name: 'reason', hint: 'Optional, for the log.' });

function checkbox(label, name) {
  const id = newID();
  return el('div', { class: 'check' }, el('input', { id, type: 'checkbox', name }), el('label', { for: id }, label));
}

function topUp({ card, name, say, patch }) {
  const { sharesWith } = card.entry;
  const upTo = checkbox('Take what is left if it is less', 'upTo');
  upTo.hidden = true;
  const tokens = field('Tokens', { name: 'tokens', required: true, hint: 'A negative number takes tokens back.' });
  tokens.addEventListener('input', (event) => { upTo.hidden = !/^\s*[-−]/.test(event.target.value); });
  return dialog({
    title: `Top up ${name}`, text: sharesWith ? `This changes the balance of ${mask(sharesWith)}, which it shares.` : [],
    fields: [tokens, upTo, reason()], verb: 'Top up',
    async action(values) {
      const n = wholeNumber(values.tokens, 'Tokens');
      const { added = n, tokensLeft: left } = await patch('add',
        n < 0 && values.upTo ? { addTokens: n, upTo: true } : { addTokens: n }, values);
      say(`${n < 0 ? 'Took back' : 'Added'} ${count(Math.abs(added), 'token')}: ` +
        `${number(left)} ${left === 1 ? 'is' : 'are'} left.`);
    },
  });
}

function label({ card, name, say, patch }) {
  return dialog({
    title: `Name ${name}`, verb: 'Label',
    fields: [field('Label', { name: 'label', value: card.entry.label ?? '', hint: 'Its holder sees it, too.' })],
    async action(values) {
      const text = values.label.trim();
      await patch('label', { label: text || null });
      say(text ? `The label is ${text} now.` : 'The label is removed.');
    },
  });
}

async function move({ card, name, say, patch }) {
  await card.view.readGroups();
  const { view, entry } = card;
  const groups = [...view.groups?.keys() ?? []];
  return dialog({
    title: `Move ${name}`, text: 'It keeps its balance, and has the limits, models and refills of the new group.',
    fields: [field('Group', { tag: 'select', name: 'group', options: groups,
      value: view.groups?.has(entry.group) ? entry.group : groups[0] }), reason()],
    verb: 'Move',
    async action(values) {
      await patch('move', { group: values.group }, values);
      say(`The key is in the group ${values.group} now.`);
    },
  });
}

async function rotate({ card, name, send }) {
  let made, end;
  const grace = field('Grace', { name: 'grace', value: '0',
    hint: 'Seconds for which the old key works beside the new one: up to 604,800 (7 days). With 0 it is dead at once.' });
  const done = await dialog({
    title: `Rotate ${name}?`, text: 'A new key takes its place, with the same balance, group, label and expiry.',
    fields: card.key.startsWith('user_') ? [grace] : [], verb: 'Rotate', danger: true,
    async action(values) {
      const graceSeconds = wholeNumber(values.grace || '0', 'Grace');
      made = await send('rotate', 'POST', card.url + '/rotate', graceSeconds === 0 ? undefined : { graceSeconds });
      end = graceSeconds > 0 && new Date(Date.now() + graceSeconds * 1000).toISOString();
    },
  });
  if (done) {
    card.view.rotated(card.entry, made.apiKey,
      end ? [`Rotated. ${name} works until `, time(end), '.'] : `Rotated. ${name} is dead.`);
  }
}

async function enableOrDisable({ card, name, say, patch }) {
  if (isDisabled(card)) {
    await patch('enable', { enabled: true });
    return say('The key is enabled.');
  }
  return dialog({
    title: `Disable ${name}?`, text: 'It is refused until you enable it, as are keys that share its balance.',
    fields: [reason()], verb: 'Disable', danger: true,
    async action(values) {
      await patch('disable', { enabled: false }, values);
      say('The key is disabled.');
    },
  });
}

async function revoke({ card, name }) {
  const provider = providerOf(card.entry.userId);
  const done = await dialog({
    title: `Revoke ${name}?`, danger: true, verb: 'Revoke',
    text: ['It is dead at once, as are keys that share its balance. This cannot be undone.', ...provider ? [
      `The next sign-in with ${provider} makes a key with the balance 0. To keep the user out, disable the key.`] : []],
    fields: [...provider ? [checkbox('Forget the user: the next sign-in is like the first', 'forget')] : [], reason()],
    async action({ forget, reason }) {
      await request('DELETE', card.url + query({ forget: forget && 'true', reason: reason.trim() }));
    },
  });
  if (done) card.view.revoked(card.entry, `${name} is revoked.`);
}
