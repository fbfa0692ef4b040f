// Tenants is being built.
export async function showTenants(content) { content.append('Tenants'); }
