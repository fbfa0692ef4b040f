// The view Tenants, for the operator: which exist, making and deleting them.

import { currentTenant, path, request, rootPath } from './api.js';
import { loadTenants, openTenant } from './app.js';
import { button, controlOf, dialog, el, field, form, inputError, messages, showStatus, table } from './dom.js';
import { find, parse } from './json.js';

// templates are the configs of new tenants, as JSON texts. Copying reads that of the present tenant when it is made.
const visitors = '"anonymous":{"tokens":1000,"rate_limit":10,"rate_limit_window":60}';
const members = '"member":{"tokens":100000,"rate_limit":60,"rate_limit_window":60}';
const endpoint = (name, url, model) =>
  `"providers":{"text":{"default":"${name}","endpoints":{"${name}":` +
  `{"url":"${url}","default_model":"${model}","bytes_per_token":3}}}}`;
const templates = new Map([
  ['Visitors and members', `{"user_groups":{${visitors},${members}}}`],
  ['OpenAI, its key to be added',
    `{"user_groups":{${visitors},${members}},` +
    endpoint('openai', 'https://api.openai.com/v1/chat/completions', 'gpt-6-luna') + '}'],
  ['Anthropic, its key to be added',
    `{"user_groups":{${visitors},${members}},` +
    endpoint('anthropic', 'https://api.anthropic.com/v1/messages', 'claude-sonnet-5-5') + '}'],
  ['Ollama on this machine',
    `{"user_groups":{${visitors},${members}},` +
    endpoint('ollama', 'http://localhost:11434/v1/chat/completions', 'llama3.2') + '}'],
  ['Empty', '{}'],
]);
const copied = 'A copy of the config of ';

export async function showTenants(content, { signal }) {
  const list = el('section', {}, el('p', {}, 'No tenant exists yet.'));
  const create = form([
    field('Tenant ID', { name: 'tenantId', required: true, autocapitalize: 'none', spellcheck: 'false',
      hint: 'Up to 64 letters, digits, - and _. It stands in the paths of all its requests.' }),
    field('Template', { name: 'template', tag: 'select', options: choices(),
      hint: 'Its config, which you can change afterwards.' }),
  ], 'Create', async ({ tenantId, template }, node) => {
    const config = templates.get(template) ?? await presentConfig();
    const body = `{"tenantId":${JSON.stringify(tenantId.trim())},"config":${config}}`;
    const answer = await request('POST', '/admin/tenants', { body });
    node.reset();
    await refresh();
    showStatus(node, `The tenant ${tenantId.trim()} was created.`, ...answer.body.warnings ?? []);
  });
  const focus = () => controlOf(create).focus();
  content.append(list, el('section', {}, el('h2', {}, button('New tenant', focus, { class: 'heading' })), create));
  await refresh();

  // choices offers to copy the config of the tenant that is chosen in the header.
  function choices() {
    return [...templates.keys(), ...currentTenant() ? [copied + currentTenant()] : []];
  }

  async function refresh() {
    const tenants = await loadTenants();
    if (signal.aborted) return;
    controlOf(create.querySelectorAll('.field')[1])
      .replaceChildren(...choices().map((name) => el('option', { value: name }, name)));
    const rows = tenants.map((id) => [id, el('div', { class: 'actions' },
      button(label('Open', id), () => openTenant(id, 'Overview')),
      button(label('Delete', id), () => remove(id), { class: 'danger' }))]);
    list.replaceChildren(table('Tenants', ['Tenant', 'Actions'], rows), messages());
  }

  async function remove(id) {
    const done = await dialog({
      title: `Delete ${id}?`,
      text: ['Its config, history and admin tokens are deleted. Its API keys are refused from now on, also by a new ' +
        'tenant of the same name.', `Enter ${id} to confirm.`],
      fields: [field('Name', { name: 'name', autocapitalize: 'none', spellcheck: 'false' })],
      verb: 'Delete',
      danger: true,
      async action({ name }) {
        if (name.trim() !== id) throw inputError(`Enter ${id}, exactly as it is written.`);
        await request('DELETE', rootPath`/admin/tenants/${id}`);
      },
    });
    if (!done) return;
    await refresh();
    showStatus(list, `The tenant ${id} was deleted.`);
  }
}

// label returns the name of a button in a row: the tenant is for those who do not see the row.
function label(verb, id) { return el('span', {}, verb, el('span', { class: 'visually-hidden' }, ' ' + id)); }

// presentConfig returns the config of the tenant that is chosen in the header, as text.
async function presentConfig() {
  const { text } = await request('GET', path`/admin/config`);
  const node = find(parse(text), ['config']);
  return text.slice(node.start, node.end);
}
