// Health is being built.
export async function showHealth(content) { content.append('Health'); }
