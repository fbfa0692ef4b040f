// The form for a new key.

import { Attempt, path } from './api.js';
import { button, controlOf, el, field, form } from './dom.js';
import { count, wholeNumber } from './keytext.js';

const lifetimes = [['', 'Never'], ...[1, 7, 30, 90, 365].map((days) => [days * 86400, `In ${count(days, 'day')}`])];

// newKeyForm returns the place of the form and what opens it there. readGroups returns the groups of the present
// config; created(userId, key, sentence) shows the key that was made.
export function newKeyForm(readGroups, created) {
  const attempt = new Attempt();
  const place = el('div');
  const group = field('Group', { tag: 'select', name: 'group', required: true });
  const tokens = field('Tokens', { name: 'tokens', hint: ' ' });
  const select = controlOf(group);
  const fields = form([el('div', { class: 'grid' },
    field('User ID', { name: 'userId', required: true, autocapitalize: 'none', spellcheck: 'false' }), group,
    field('Label', { name: 'label', hint: 'Optional. The holder sees it, too.' }), tokens,
    field('Expires', { tag: 'select', name: 'expiresIn', options: lifetimes }))], 'Create key', create);
  const section = el('section', {}, el('h2', {}, 'New key'), fields);
  let opener, groups;
  fields.querySelector('.actions').append(button('Cancel', close));
  select.addEventListener('change', hint);

  function hint() {
    tokens.querySelector('.hint').textContent =
      `Optional. By default ${count(groups.get(select.value)?.tokens ?? 0, 'token')}, as the group says.`;
  }

  async function open() {
    opener = document.activeElement;
    groups = await readGroups() ?? new Map();
    const names = [...groups.keys()];
    const value = groups.has(select.value) ? select.value : names.find((name) => name !== 'anonymous') ?? names[0];
    select.replaceChildren(...names.map((name) => el('option', { value: name }, name)));
    select.value = value;
    hint();
    place.replaceChildren(section);
    controlOf(fields).focus();
  }

  function close() {
    section.remove();
    opener.focus();
  }

  async function create(values) {
    const { body: { apiKey, tokensLeft } } = await attempt.send('POST', path`/admin/keys`, {
      userId: values.userId.trim(), group: values.group, label: values.label.trim() || undefined,
      tokens: values.tokens.trim() ? wholeNumber(values.tokens, 'Tokens') : undefined,
      expiresIn: Number(values.expiresIn) || undefined,
    });
    fields.reset();
    select.value = values.group;
    close();
    created(values.userId.trim(), apiKey, `Created with ${count(tokensLeft, 'token')} in the group ${values.group}.`);
  }

  return { place, open };
}
