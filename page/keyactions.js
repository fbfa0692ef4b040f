// What can be done with an API key. What is asked for again after an error has the same Idempotency-Key.

import { Attempt, query, request } from './api.js';
import { dialog, el, field, mask, newID, number, showStatus, time } from './dom.js';
import { count, wholeNumber } from './keytext.js';

// An Actions has the buttons for the key of a card.
export class Actions {
  #attempts = new Map(); // by action

  constructor(card) {
    Object.assign(this, { card, name: mask(card.key) });
    const make = (name, action, danger) => card.button(name, () => action(this), { class: danger && 'danger' });
    this.toggle = make('Disable', enableOrDisable);
    this.buttons = [make('Top up', topUp), make('Label', label), make('Move', move), make('Rotate', rotate),
      this.toggle, make('Revoke', revoke, true)];
  }

  get isDisabled() { return this.card.entry.enabled === false; }

  // update brings the buttons in line with the key.
  update() {
    this.toggle.firstChild.data = this.isDisabled ? 'Enable' : 'Disable';
    this.toggle.className = this.isDisabled ? '' : 'danger';
  }

  ask(verb, fields, action, options) {
    return dialog({ title: `${verb} ${this.name}${options?.danger ? '?' : ''}`, verb, fields, action, ...options });
  }

  async send(action, method, url, body) {
    if (!this.#attempts.has(action)) this.#attempts.set(action, new Attempt());
    return (await this.#attempts.get(action).send(method, url, body)).body;
  }

  // patch changes members of the key, and shows what has become of it and of those that share its balance.
  async patch(action, members, { reason = '' } = {}) {
    const body = await this.send(action, 'PATCH', this.card.url, { ...members, reason: reason.trim() || undefined });
    const { card } = this;
    const { group, tokensLeft, tokensHeld, refillsAt } = body;
    const { sharesWith } = card.entry;
    card.update({ ...body, apiKey: card.key, sharesWith });
    for (const other of card.view.cards) {
      const shares = (other.entry.sharesWith ?? other.key) === (sharesWith ?? card.key);
      if (other !== card && shares) other.update({ ...other.entry, group, tokensLeft, tokensHeld, refillsAt });
    }
    return body;
  }

  say(sentence) { showStatus(this.card.node, sentence); }
}

const reasonField = () => field('Reason', { name: 'reason', hint: 'Optional, for the log.' });

function checkbox(label, name) {
  const id = newID();
  return el('div', { class: 'check' }, el('input', { id, type: 'checkbox', name }), el('label', { for: id }, label));
}

function topUp(key) {
  const { sharesWith } = key.card.entry;
  const tokens = field('Tokens', { name: 'tokens', required: true, hint: 'A negative number takes tokens back.' });
  const fields = [tokens, checkbox('If fewer are left, take those', 'upTo'), reasonField()];
  return key.ask('Top up', fields, async (values) => {
    const n = wholeNumber(values.tokens, 'Tokens');
    const upTo = n < 0 && values.upTo ? true : undefined;
    const { added = n, tokensLeft: left } = await key.patch('add', { addTokens: n, upTo }, values);
    const done = `${n < 0 ? 'Took back' : 'Added'} ${count(Math.abs(added), 'token')}`;
    key.say(`${done}: ${number(left)} ${left === 1 ? 'is' : 'are'} left.`);
  }, { text: sharesWith ? `It shares the balance of ${mask(sharesWith)}, which this changes.` : [] });
}

function label(key) {
  const value = key.card.entry.label ?? '';
  const fields = [field('Label', { name: 'label', value, hint: 'Its holder sees it, too.' })];
  return key.ask('Label', fields, async (values) => {
    const text = values.label.trim();
    await key.patch('label', { label: text || null });
    key.say(text ? `The label is ${text} now.` : 'The label is removed.');
  }, { title: `Name ${key.name}` });
}

async function move(key) {
  const { view, entry } = key.card;
  const groups = [...await view.readGroups() ?? []].map(([name]) => name);
  const value = groups.includes(entry.group) ? entry.group : groups[0];
  return key.ask('Move', [field('Group', { tag: 'select', name: 'group', options: groups, value }), reasonField()],
    async (values) => {
      await key.patch('move', { group: values.group }, values);
      key.say(`The key is in the group ${values.group} now.`);
    }, { text: 'It keeps its balance. Limits, models and refills are those of the new group.' });
}

async function rotate(key) {
  const { card, name } = key;
  let made, end;
  const grace = field('Grace', { name: 'grace', value: '0',
    hint: 'Seconds for which the old key works beside the new one, at most 604,800 (7 days). With 0 it is dead.' });
  const done = await key.ask('Rotate', card.key.startsWith('user_') ? [grace] : [], async (values) => {
    const graceSeconds = wholeNumber(values.grace || '0', 'Grace');
    made = await key.send('rotate', 'POST', card.url + '/rotate', graceSeconds ? { graceSeconds } : undefined);
    end = graceSeconds && new Date(Date.now() + graceSeconds * 1000).toISOString();
  }, { danger: true, text: 'A new key takes its place, with the same balance, group, label and expiry.' });
  if (!done) return;
  card.view.rotated(card.entry, made.apiKey, end ? [`${name} works until `, time(end), '.'] : `${name} is dead.`);
}

async function enableOrDisable(key) {
  if (!key.isDisabled) {
    return key.ask('Disable', [reasonField()], async (values) => {
      await key.patch('disable', { enabled: false }, values);
      key.say('The key is disabled.');
    }, { danger: true, text: 'It is refused until you enable it, as are keys that share its balance.' });
  }
  await key.patch('enable', { enabled: true });
  key.say('The key is enabled.');
}

async function revoke(key) {
  const { card, name } = key;
  const text = ['It is dead at once, as are keys that share its balance. This cannot be undone.'];
  const fields = [reasonField()];
  if (/^(google|apple):/.test(card.entry.userId)) {
    text.push('Its user can sign in again, and gets a key with the balance 0. To keep them out, disable the key.');
    fields.unshift(checkbox('Forget the user: the next sign-in is like the first', 'forget'));
  }
  const done = await key.ask('Revoke', fields, async ({ forget, reason }) => {
    await request('DELETE', card.url + query({ forget: forget && 'true', reason: reason.trim() }));
  }, { danger: true, text });
  if (done) card.view.revoked(card.entry, `${name} is revoked.`);
}
