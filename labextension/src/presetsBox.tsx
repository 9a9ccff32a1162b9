/** Presets: what the launch dialog begins with, and where what stands in it is kept under a name. */
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { OWN_ENTER } from './dialog';
import type { LaunchDraft } from './launchDraft';
import { AGAIN, DEFAULTS, LAST_USED } from './launchDraft';
import { importedText } from './text';
import { IMPORTED_PRESET } from './tokens';

interface IPresetsProps {
  draft: LaunchDraft;
  trans: TranslationBundle;
}

/** What to begin with, and the buttons to save, delete and import. */
export function PresetsBox({ draft, trans }: IPresetsProps): JSX.Element {
  const [name, setName] = React.useState<string | null>(null);
  const names = Object.keys(draft.presets.presets).sort();
  const busy = draft.busy !== null;
  const save = async () => {
    if (name?.trim() && (await draft.savePreset(name.trim()))) {
      setName(null);
    }
  };
  return (
    <div className="jp-ClearML-presets">
      <label className="jp-ClearML-field" htmlFor="jp-ClearML-preset">
        <span className="jp-ClearML-label">{trans.__('Begin with')}</span>
        <select
          id="jp-ClearML-preset"
          className="jp-ClearML-input"
          value={draft.chosen}
          disabled={busy}
          onChange={event => draft.choose(event.target.value)}
        >
          {draft.again && (
            <option value={AGAIN}>
              {trans.__('The session “%1”', draft.again.name)}
            </option>
          )}
          <option value={DEFAULTS}>{trans.__('Defaults')}</option>
          {draft.presets.last && Object.keys(draft.presets.last).length > 0 && (
            <option value={LAST_USED}>{trans.__('Last launch')}</option>
          )}
          {names.map(preset => (
            <option key={preset} value={preset}>
              {preset}
            </option>
          ))}
        </select>
      </label>
      {name === null ? (
        <div className="jp-ClearML-actions">
          <button
            type="button"
            className="jp-ClearML-button"
            data-action="save-preset"
            disabled={busy}
            onClick={() => setName(names.includes(draft.chosen) ? draft.chosen : '')}
          >
            {trans.__('Save as Preset…')}
          </button>
          {names.includes(draft.chosen) && (
            <button
              type="button"
              className="jp-ClearML-button"
              data-action="delete-preset"
              disabled={busy}
              onClick={() => void draft.deletePreset()}
            >
              {trans.__('Delete Preset')}
            </button>
          )}
          {draft.presets.importable && !names.includes(IMPORTED_PRESET) && (
            <button
              type="button"
              className="jp-ClearML-button"
              data-action="import-presets"
              disabled={busy}
              title={trans.__(
                'Take over what the clearml-session command line remembers'
              )}
              onClick={() => void draft.importPresets()}
            >
              {trans.__('Import from Command Line')}
            </button>
          )}
        </div>
      ) : (
        <div className="jp-ClearML-actions">
          <input
            className="jp-ClearML-input"
            aria-label={trans.__('Name of the preset')}
            {...{ [OWN_ENTER]: true }}
            placeholder={trans.__('Name of the preset')}
            // The user has just asked for it.
            // eslint-disable-next-line jsx-a11y/no-autofocus
            autoFocus
            value={name}
            onChange={event => setName(event.target.value)}
            onKeyDown={event => {
              if (event.key === 'Enter') {
                void save();
              }
            }}
          />
          <button
            type="button"
            className="jp-ClearML-button jp-mod-primary"
            disabled={busy || !name.trim()}
            onClick={() => void save()}
          >
            {trans.__('Save')}
          </button>
          <button
            type="button"
            className="jp-ClearML-button"
            onClick={() => setName(null)}
          >
            {trans.__('Cancel')}
          </button>
        </div>
      )}
      {draft.refusedImports && (
        <p role="status" className="jp-ClearML-dim">
          {importedText(draft.refusedImports, trans)}
        </p>
      )}
      {(draft.presets.messages ?? []).map(message => (
        <p key={message} className="jp-ClearML-note">
          {message}
        </p>
      ))}
    </div>
  );
}
