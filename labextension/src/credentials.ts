/** Reads the block that ClearML's web pages show under "Create new credentials". Pure. */
import type { ICredentials } from './request';

const FIELDS: { [key: string]: keyof ICredentials } = {
  api_server: 'api_server',
  web_server: 'web_server',
  files_server: 'files_server',
  access_key: 'access_key',
  secret_key: 'secret_key',
  clearml_api_host: 'api_server',
  clearml_web_host: 'web_server',
  clearml_files_host: 'files_server',
  clearml_api_access_key: 'access_key',
  clearml_api_secret_key: 'secret_key'
};

/**
 * Find credentials in a pasted text: the `api { ... }` block, JSON of the same, or `CLEARML_*` variables as
 * for a shell or a notebook (`%env NAME=value`). What is not there is left out.
 */
export function parseCredentials(text: string): Partial<ICredentials> {
  const found: Partial<ICredentials> = {};
  const entry =
    /["']?([A-Za-z_]+)["']?[ \t]*[:=][ \t]*(?:"([^"\n]*)"|'([^'\n]*)'|([^\s"',{}#]+))/g;
  for (const match of text.matchAll(entry)) {
    const field = FIELDS[match[1].toLowerCase()];
    const value = (match[2] ?? match[3] ?? match[4] ?? '').trim();
    if (field && value) {
      found[field] = value;
    }
  }
  return found;
}
