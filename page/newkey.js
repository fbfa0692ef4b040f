// The form for a new key.

import { Attempt, path } from './api.js';
import { button, controlOf, el, field, form } from './dom.js';
import { count, wholeNumber } from './keytext.js';

const day = 86400; // seconds
const lifetimes = [['', 'Never'], [day, 'In 1 day'], [7 * day, 'In 7 days'], [30 * day, 'In 30 days'],
  [90 * day, 'In 90 days'], [365 * day, 'In 1 year']];

// newKeyForm returns the place of the form and what opens it there. readGroups returns the groups of the present config;
// created(userId, response, sentence) shows the key that was made.
export function newKeyForm(readGroups, created) {
  const attempt = new Attempt();
  const group = field('Group', { tag: 'select', name: 'group', required: true });
  const tokens = field('Tokens', { name: 'tokens', hint: ' ' });
  const select = controlOf(group);
  const fields = form([el('div', { class: 'grid' },
    field('User ID', { name: 'userId', required: true, autocapitalize: 'none', spellcheck: 'false' }), group,
    field('Label', { name: 'label', hint: 'Optional. The holder sees it, too.' }), tokens,
    field('Expires', { tag: 'select', name: 'expiresIn', options: lifetimes }))], 'Create key', create);
  const section = el('section', {}, el('h2', {}, 'New key'), fields);
  const place = el('div');
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
    const body = { userId: values.userId.trim(), group: values.group };
    if (values.label.trim()) body.label = values.label.trim();
    if (values.tokens.trim()) body.tokens = wholeNumber(values.tokens, 'Tokens');
    if (values.expiresIn) body.expiresIn = Number(values.expiresIn);
    const answer = await attempt.send('POST', path`/admin/keys`, body);
    fields.reset();
    select.value = body.group;
    close();
    created(body.userId, answer.body, `Created with ${count(answer.body.tokensLeft, 'token')} in the group ${body.group}.`);
  }

  return { place, open };
}
