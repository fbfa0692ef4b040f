// The view Tenants, for the operator: which exist, making and deleting them.

import { chooseTenant, currentTenant, request, rootPath } from './api.js';
import { loadTenants, openTenant } from './app.js';
import { readConfig } from './configs.js';
import { button, controlOf, dialog, el, field, form, inputError, messages, rowButton, showStatus, table }
  from './dom.js';

// templates are the configs of new tenants. More are made of endpoints: [title, name, URL, default model].
const groups = { anonymous: { tokens: 1000, rate_limit: 10, rate_limit_window: 60 },
  member: { tokens: 100000, rate_limit: 60, rate_limit_window: 60 } };
const templates = new Map([['Visitors and members', { user_groups: groups }]]);
for (const [title, name, url, model] of [
  ['OpenAI, its key to be added', 'openai', 'https://api.openai.com/v1/chat/completions', 'gpt-6-luna'],
  ['Anthropic, its key to be added', 'anthropic', 'https://api.anthropic.com/v1/messages', 'claude-sonnet-5-5'],
  ['Ollama on this machine', 'ollama', 'http://localhost:11434/v1/chat/completions', 'llama3.2'],
]) {
  const endpoints = { [name]: { url, default_model: model, bytes_per_token: 3 } };
  templates.set(title, { user_groups: groups, providers: { text: { default: name, endpoints } } });
}
templates.set('Empty', {});
const copied = 'A copy of the config of ';

export async function showTenants(content, { signal }) {
  const list = el('section', {}, el('p', {}, 'No tenant exists yet.'));
  const template = field('Template', { name: 'template', tag: 'select',
    hint: 'Its config, which you can change afterwards.' });
  const create = form([
    field('Tenant ID', { name: 'tenantId', required: true, autocapitalize: 'none', spellcheck: 'false',
      hint: 'Up to 64 letters, digits, - and _. It is part of the path of each request.' }),
    template,
  ], 'Create', async (values, node) => {
    const tenantId = values.tenantId.trim();
    const template = templates.get(values.template);
    const config = template ? JSON.stringify(template) : (await readConfig(signal)).text;
    const body = `{"tenantId":${JSON.stringify(tenantId)},"config":${config}}`;
    const answer = await request('POST', '/admin/tenants', { body });
    node.reset();
    chooseTenant(tenantId); // who makes one goes on with it
    await refresh();
    showStatus(node, `The tenant ${tenantId} was created.`, ...answer.body.warnings ?? []);
  });
  const focus = () => controlOf(create).focus();
  content.append(list, el('section', {}, el('h2', {}, button('New tenant', focus, { class: 'heading' })), create));
  await refresh();

  async function refresh() {
    const tenants = await loadTenants();
    if (signal.aborted) return;
    const titles = [...templates.keys(), ...currentTenant() ? [copied + currentTenant()] : []];
    controlOf(template).replaceChildren(...titles.map((title) => el('option', { value: title }, title)));
    const rows = tenants.map((id) => [id, el('div', { class: 'actions' },
      rowButton('Open', id, () => openTenant(id, 'Overview')),
      rowButton('Delete', id, () => remove(id), { class: 'danger' }))]);
    list.replaceChildren(table('Tenants', ['Tenant', 'Actions'], rows, { hideCaption: true }), messages());
  }

  async function remove(id) {
    const done = await dialog({
      title: `Delete ${id}?`,
      text: ['Its config, history and admin tokens are deleted, and its API keys stop working for good.',
        `Enter ${id} to confirm.`],
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
