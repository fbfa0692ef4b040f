// Overview is being built.
export async function showOverview(content) { content.append('Overview'); }
