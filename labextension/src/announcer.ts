/** Tells screen readers what changes. */
import type { TranslationBundle } from '@jupyterlab/translation';

import { phaseName } from './text';
import type { ISessionModel } from './tokens';

/** Makes the node that says each change of phase. Not in the panel: what another side panel covers is not read. */
export function announcer(model: ISessionModel, trans: TranslationBundle): HTMLElement {
  const node = document.createElement('div');
  node.className = 'jp-ClearML-hidden';
  node.setAttribute('role', 'status');
  node.setAttribute('aria-live', 'polite');
  let news: string[] = []; // of this moment: one snapshot may hold several
  model.phaseChanged.connect((_, { session, before }) => {
    if (before !== null) {
      news.push(`${session.name}: ${phaseName(session.phase, trans)}`);
      node.textContent = news.join(', ');
      queueMicrotask(() => (news = []));
    }
  });
  return node;
}
