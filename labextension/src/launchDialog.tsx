/** The launch dialog: drawn from the server's schema, closed only when the session was accepted or the user says so. */
import { Dialog, ReactWidget, UseSignal } from '@jupyterlab/apputils';
import type { ITranslator, TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { ErrorBox } from './card';
import { BodyDialog } from './dialog';
import { useKeptFocus } from './focus';
import type { ILaunchRequest } from './launchDraft';
import { LaunchDraft } from './launchDraft';
import { PresetsBox } from './presetsBox';
import { tell } from './notify';
import { RepositoryBox } from './repositoryBox';
import { SpecForm } from './specForm';
import type { ISession, ISessionModel } from './tokens';
import { TRANSLATION_DOMAIN } from './tokens';
import { UploadBar, Uploading } from './uploading';

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
    const trans = this._translator.load(TRANSLATION_DOMAIN);
    const draft = (this._draft =
      this._draft ?? new LaunchDraft(this._model.api, trans));
    void draft.load(request);
    this._dialog = new LaunchDialog(draft, this._model, this._translator);
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
    private readonly _model: ISessionModel,
    translator: ITranslator
  ) {
    const trans = translator.load(TRANSLATION_DOMAIN);
    const body = new LaunchBody(_draft, trans);
    super({
      title: trans.__('New ClearML session'),
      body,
      buttons: [
        Dialog.cancelButton({ label: trans.__('Cancel') }),
        Dialog.okButton({ label: trans.__('Launch') })
      ],
      defaultButton: 1,
      focusNodeSelector: FIRST_CONTROL
    });
    this._form = body;
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
    const uploaded = this._form.uploading?.session;
    if (uploaded) {
      void tell(() => this._model.api.shutdown(uploaded.id)); // ends the upload too
    }
    this._draft.cancel();
    super.reject();
  }

  override dispose(): void {
    this._draft.changed.disconnect(this._onDraft, this);
    super.dispose();
  }

  private async _launch(): Promise<void> {
    if (!this._draft.launchable) {
      return; // Enter leads here in the middle of a launch too
    }
    this._form.uploading = new Uploading(this._model);
    this.session = await this._draft.launch();
    this._form.uploading = null;
    if (this.session && !this.isDisposed) {
      super.resolve(1);
    }
  }

  private _onDraft(): void {
    this.acceptable = this._draft.launchable;
  }

  private readonly _form: LaunchBody;
}

class LaunchBody extends ReactWidget {
  constructor(
    private readonly _draft: LaunchDraft,
    private readonly _trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-ClearML-launch');
  }

  /** What is uploaded for the launch that is going on. */
  uploading: Uploading | null = null;

  protected override render(): JSX.Element {
    return (
      <UseSignal signal={this._draft.changed}>
        {() => (
          <LaunchForm
            draft={this._draft}
            uploading={this.uploading}
            trans={this._trans}
          />
        )}
      </UseSignal>
    );
  }
}

interface ILaunchFormProps {
  draft: LaunchDraft;
  trans: TranslationBundle;
}

/** Presets, then the groups of options; all but the first are folded. Below, always in sight: what is going on. */
export function LaunchForm(
  props: ILaunchFormProps & { uploading?: Uploading | null }
): JSX.Element {
  const { draft, uploading, trans } = props;
  const box = React.useRef<HTMLDivElement>(null);
  const drawn = draft.schema !== null;
  useKeptFocus(box);
  const focus = (selector: string) =>
    box.current?.querySelector<HTMLElement>(selector)?.focus();
  React.useLayoutEffect(() => {
    if (drawn) {
      focus(FIRST_CONTROL); // where the dialog is opened with it, the dialog itself does it
    }
  }, [drawn]);
  React.useEffect(() => focus('[aria-invalid="true"]'), [draft.refused]);
  return (
    <>
      <div ref={box} className="jp-ClearML-launchForm" tabIndex={-1}>
        {draft.schema && (
          <>
            <PresetsBox draft={draft} trans={trans} />
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
      </div>
      <div className="jp-ClearML-launchFooter">
        {draft.failure && (
          <ErrorBox error={draft.failure.body} trans={trans}>
            {draft.isUnanswered && (
              <button
                type="button"
                className="jp-ClearML-button"
                onClick={() => void draft.askAgain()}
              >
                {trans.__('Try Again')}
              </button>
            )}
          </ErrorBox>
        )}
        {uploading && <UploadBar uploading={uploading} trans={trans} />}
        <p role="status" className="jp-ClearML-dim">
          {draft.busy === 'loading' && trans.__('Asking for queues and options…')}
          {draft.busy === 'launching' && trans.__('Launching…')}
          {draft.busy === 'saving' && trans.__('Saving…')}
        </p>
      </div>
    </>
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
  const box = React.useRef<HTMLDetailsElement>(null);
  React.useLayoutEffect(() => {
    if (wrong && box.current) {
      box.current.open = true; // React, which has opened it before, does not know that it was folded since
    }
  }, [wrong, draft.refused]);
  return (
    <details
      ref={box}
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
