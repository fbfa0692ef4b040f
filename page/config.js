// Config is being built.
export async function showConfig(content) { content.append('Config'); }
