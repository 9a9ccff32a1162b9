/** The launch dialog: drawn from the server's schema, closed only when the session was accepted or the user says so. */
import { Dialog, ReactWidget, UseSignal } from '@jupyterlab/apputils';
import type { ITranslator, TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { ErrorBox } from './card';
import { BodyDialog, OWN_ENTER, useKeptFocus } from './dialog';
import type { ILaunchRequest } from './launchDraft';
import { AGAIN, DEFAULTS, LAST_USED, LaunchDraft } from './launchDraft';
import { RepositoryBox } from './repositoryBox';
import { SpecForm } from './specForm';
import { importedText } from './text';
import type { ISession, ISessionModel } from './tokens';
import { IMPORTED_PRESET, TRANSLATION_DOMAIN } from './tokens';

/** Opens the dialog; keeps what was typed until it was launched. */
export class Launcher {
  constructor(
    private readonly _model: ISessionModel,
    private readonly _translator: ITranslator
  ) {}

  /** Ask for the options and launch; null when the user closed the dialog. */
  async launch(request: ILaunchRequest = {}): Promise<ISession | null> {
    if (this._dialog) {
      return null; // it is open already
    }
    const draft = (this._draft = this._draft ?? new LaunchDraft(this._model.api));
    void draft.load(request);
    this._dialog = new LaunchDialog(draft, this._translator);
    try {
      await this._dialog.launch();
      const { session } = this._dialog;
      if (session) {
        this._draft = null;
      }
      return session;
    } finally {
      this._dialog = null;
    }
  }

  private _draft: LaunchDraft | null = null;
  private _dialog: LaunchDialog | null = null;
}

/** Where the hands are when the dialog opens. */
const FIRST_CONTROL = '[data-field] :is(select, input, textarea)';

/** A dialog whose Launch button closes it only when the launch was accepted. */
class LaunchDialog extends BodyDialog {
  constructor(
    private readonly _draft: LaunchDraft,
    translator: ITranslator
  ) {
    const trans = translator.load(TRANSLATION_DOMAIN);
    super({
      title: trans.__('New ClearML session'),
      body: new LaunchBody(_draft, trans),
      buttons: [
        Dialog.cancelButton({ label: trans.__('Cancel') }),
        Dialog.okButton({ label: trans.__('Launch') })
      ],
      defaultButton: 1,
      focusNodeSelector: FIRST_CONTROL
    });
    this.addClass('jp-ClearML-launchDialog');
    _draft.changed.connect(this._onDraft, this);
    this._onDraft();
  }

  /** What was launched. */
  session: ISession | null = null;

  override resolve(index?: number): void {
    if (index === 0) {
      this.reject();
      return;
    }
    void this._launch();
  }

  override reject(): void {
    this._draft.cancel();
    super.reject();
  }

  override dispose(): void {
    this._draft.changed.disconnect(this._onDraft, this);
    super.dispose();
  }

  private async _launch(): Promise<void> {
    this.session = await this._draft.launch();
    if (this.session && !this.isDisposed) {
      super.resolve(1);
    }
  }

  private _onDraft(): void {
    this.acceptable = this._draft.launchable;
  }
}

class LaunchBody extends ReactWidget {
  constructor(
    private readonly _draft: LaunchDraft,
    private readonly _trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-ClearML-launch');
  }

  protected override render(): JSX.Element {
    return (
      <UseSignal signal={this._draft.changed}>
        {() => <LaunchForm draft={this._draft} trans={this._trans} />}
      </UseSignal>
    );
  }
}

interface ILaunchFormProps {
  draft: LaunchDraft;
  trans: TranslationBundle;
}

/** Presets, then the groups of options; all but the first are folded. */
export function LaunchForm({ draft, trans }: ILaunchFormProps): JSX.Element {
  const box = React.useRef<HTMLDivElement>(null);
  const drawn = draft.schema !== null;
  useKeptFocus(box);
  const focus = (selector: string) =>
    box.current?.querySelector<HTMLElement>(selector)?.focus();
  React.useEffect(() => focus(FIRST_CONTROL), [drawn]);
  React.useEffect(() => focus('[aria-invalid="true"]'), [draft.refused]);
  return (
    <div ref={box} className="jp-ClearML-launchForm" tabIndex={-1}>
      {draft.schema && (
        <>
          <Presets draft={draft} trans={trans} />
          <RepositoryBox draft={draft} trans={trans} />
          {draft.groups().map((group, index) => (
            <Group
              key={group}
              group={group}
              open={index === 0}
              draft={draft}
              trans={trans}
            />
          ))}
        </>
      )}
      {draft.failure && (
        <ErrorBox error={draft.failure.body} trans={trans}>
          {!draft.schema && (
            <button
              type="button"
              className="jp-ClearML-button"
              onClick={() => void draft.load()}
            >
              {trans.__('Try Again')}
            </button>
          )}
        </ErrorBox>
      )}
      <p role="status" className="jp-ClearML-dim jp-ClearML-launchStatus">
        {draft.busy === 'loading' && trans.__('Asking for queues and options…')}
        {draft.busy === 'launching' && trans.__('Launching…')}
        {draft.busy === 'saving' && trans.__('Saving…')}
      </p>
    </div>
  );
}

function groupName(group: string, trans: TranslationBundle): string {
  switch (group) {
    case 'basic':
      return trans.__('Basic');
    case 'environment':
      return trans.__('Environment');
    case 'workspace':
      return trans.__('Workspace and code');
    case 'network':
      return trans.__('Network');
    case 'advanced':
      return trans.__('Advanced');
    default:
      return group;
  }
}

function Group(
  props: ILaunchFormProps & { group: string; open: boolean }
): JSX.Element {
  const { group, draft, trans } = props;
  const schema = React.useMemo(() => draft.group(group), [draft, group]);
  const options = Object.keys(schema.properties);
  const spec = draft.spec();
  const set = options.filter(option => option in spec).length;
  const wrong = Object.keys(draft.errors).some(field =>
    options.includes(field.split('.')[0])
  );
  const [open, setOpen] = React.useState(props.open || set > 0);
  return (
    <details
      className="jp-ClearML-optionGroup"
      data-group={group}
      open={open || wrong}
      onToggle={event => setOpen(event.currentTarget.open)}
    >
      <summary>
        {groupName(group, trans)}
        {set > 0 && (
          <span
            className="jp-ClearML-count"
            title={trans._n('%1 option set', '%1 options set', set)}
          >
            {set}
          </span>
        )}
      </summary>
      <SpecForm
        group={group}
        schema={schema}
        values={draft.values}
        errors={draft.errors}
        queues={draft.queues}
        trans={trans}
        disabled={draft.busy === 'launching'}
        onChange={values => draft.set(values)}
      />
    </details>
  );
}

function Presets({ draft, trans }: ILaunchFormProps): JSX.Element {
  const [name, setName] = React.useState<string | null>(null);
  const names = Object.keys(draft.presets.presets).sort();
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
            onClick={() => setName(names.includes(draft.chosen) ? draft.chosen : '')}
          >
            {trans.__('Save as Preset…')}
          </button>
          {names.includes(draft.chosen) && (
            <button
              type="button"
              className="jp-ClearML-button"
              data-action="delete-preset"
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
            disabled={!name.trim()}
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
