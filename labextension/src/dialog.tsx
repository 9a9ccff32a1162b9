/** What the dialogs share: a keyboard that reaches their bodies, and texts to copy. */
import { Clipboard, Dialog } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget, checkIcon, copyIcon } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import { MessageLoop } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';
import * as React from 'react';
import { flushSync } from 'react-dom';

import { useKeptFocus } from './focus';
import { SessionError } from './request';

/** Marks a control in which Enter means something else than the button of the dialog. */
export const OWN_ENTER = 'data-own-enter';

/** Milliseconds for which a button says that it has copied. */
const COPIED_FOR = 2_000;

interface IBodyDialogOptions<T> extends Partial<Dialog.IOptions<T>> {
  body: ReactWidget & Dialog.IBodyWidget<T>;
}

/**
 * A dialog with controls of its own in its body. Enter on a button or a link there presses that one (JupyterLab's
 * dialogs did not let it through before 4.6), the body can say that it is not ready to be accepted, and the focus is
 * there as soon as the dialog is.
 */
export class BodyDialog<T = void> extends Dialog<T> {
  constructor(options: IBodyDialogOptions<T>) {
    super(options);
    this._drawn = options.body;
    this.addClass('jp-ClearML-smallDialog');
    this._buttonsOf = options.buttons ?? [];
    this._default = options.defaultButton ?? this._buttonsOf.length - 1;
  }

  /** Whether what stands in the body can be accepted. */
  set acceptable(value: boolean) {
    this._acceptable = value;
    const button = this.node.querySelector<HTMLButtonElement>(
      '.jp-Dialog-footer .jp-mod-accept'
    );
    if (button) {
      button.disabled = !value;
    }
  }

  override resolve(index = this._default): void {
    if (this._acceptable || !this._buttonsOf[index]?.accept) {
      super.resolve(index);
    }
  }

  override handleEvent(event: Event): void {
    if (!(event instanceof KeyboardEvent && event.key === 'Enter' && isOwn(event))) {
      super.handleEvent(event);
    }
    if (event.type === 'input' && !this._acceptable) {
      this.acceptable = false; // JupyterLab enables the button wherever no field is invalid
    }
  }

  // Left alone, JupyterLab puts the focus when the browser is idle: the body may not be drawn yet, or the focus is
  // taken from someone who has begun to type. So the body is drawn first, where it cannot take the focus (JupyterLab
  // notes what has it, to give it back), and nothing is left to wait for.
  protected override onBeforeAttach(msg: Message): void {
    flushSync(() => MessageLoop.sendMessage(this._drawn, Widget.Msg.UpdateRequest));
    super.onBeforeAttach(msg);
  }

  protected override onAfterAttach(msg: Message): void {
    this._drawn.renderPromise = undefined;
    super.onAfterAttach(msg);
    if (!this.node.contains(document.activeElement)) {
      // What it was meant for is not there yet, or disabled: the keyboard would go on behind the dialog.
      this._drawn.node.querySelector<HTMLElement>('[tabindex]')?.focus();
    }
  }

  private readonly _drawn: ReactWidget;
  private readonly _buttonsOf: ReadonlyArray<Dialog.IButton>;
  private readonly _default: number;
  private _acceptable = true;
}

function isOwn(event: KeyboardEvent): boolean {
  const target = event.target as Element;
  return (
    target.closest(`[${OWN_ENTER}]`) !== null ||
    target.closest(
      '.jp-Dialog-body :is(button, a, summary), .jp-Dialog-close-button'
    ) !== null
  );
}

/** Draws what can be chosen, and tells of each choice; null where it is none. */
type Choices<T> = (onChoose: (value: T | null) => void) => JSX.Element;

/** Ask for one thing; null when the user thought better. */
export async function choiceDialog<T>(options: {
  title: string;
  /** What the button says that takes the choice. */
  accept: string;
  choices: Choices<T>;
  trans: TranslationBundle;
}): Promise<T | null> {
  const { title, accept, choices, trans } = options;
  const body = new ChoiceBody(choices);
  const dialog = new BodyDialog({
    title,
    body,
    buttons: [
      Dialog.cancelButton({ label: trans.__('Cancel') }),
      Dialog.okButton({ label: accept })
    ],
    focusNodeSelector: 'input'
  });
  dialog.acceptable = false;
  body.onChoose = value => {
    dialog.acceptable = value !== null;
  };
  const result = await dialog.launch();
  return result.button.accept ? (result.value ?? null) : null;
}

class ChoiceBody<T> extends ReactWidget implements Dialog.IBodyWidget<T | null> {
  constructor(private readonly _choices: Choices<T>) {
    super();
    this.addClass('jp-ClearML-dialog');
  }

  /** Hears of each choice. */
  onChoose: (value: T | null) => void = () => undefined;

  getValue(): T | null {
    return this._chosen;
  }

  protected override render(): JSX.Element {
    return this._choices(this._choose);
  }

  private readonly _choose = (value: T | null) => {
    this._chosen = value;
    this.onChoose(value);
  };
  private _chosen: T | null = null;
}

/** The body of a dialog. */
export function DialogBox({ children }: { children: React.ReactNode }): JSX.Element {
  const box = React.useRef<HTMLDivElement>(null);
  useKeptFocus(box);
  return (
    <div ref={box} className="jp-ClearML-dialog" tabIndex={-1}>
      {children}
    </div>
  );
}

/** What a dialog shows where it has to be asked for first: the dialog is there at once, and says so. */
export function Loaded<T>(props: {
  load: () => Promise<T>;
  /** What is said meanwhile. */
  waiting: string;
  trans: TranslationBundle;
  children: (value: T) => JSX.Element;
}): JSX.Element {
  const { load, waiting, trans, children } = props;
  const [value, setValue] = React.useState<{ value: T } | null>(null);
  const [error, setError] = React.useState('');
  const [attempt, setAttempt] = React.useState(0);
  React.useEffect(() => {
    let wanted = true;
    load().then(
      loaded => wanted && setValue({ value: loaded }),
      (reason: unknown) => wanted && setError(SessionError.from(reason).text)
    );
    return () => {
      wanted = false;
    };
  }, [load, attempt]);
  if (value) {
    return children(value.value);
  }
  return (
    <DialogBox>
      <p role="status">{!error && waiting}</p>
      {error && (
        <>
          <p role="alert" className="jp-ClearML-fieldError">
            {error}
          </p>
          <div className="jp-ClearML-actions">
            <button
              type="button"
              className="jp-ClearML-button"
              onClick={() => {
                setError('');
                setAttempt(attempt + 1);
              }}
            >
              {trans.__('Try Again')}
            </button>
          </div>
        </>
      )}
    </DialogBox>
  );
}

/** A text that is there to be copied. */
export function Copyable(props: {
  text: string;
  /** What it is, for the button. */
  name: string;
  trans: TranslationBundle;
}): JSX.Element {
  const { text, name, trans } = props;
  return (
    <div className="jp-ClearML-copyable">
      <pre
        // Too long for the dialog, it is scrolled: by the keyboard too.
        // eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex
        tabIndex={0}
        aria-label={name}
      >
        {text}
      </pre>
      <CopyButton text={text} name={name} trans={trans} />
    </div>
  );
}

/** Copies a text, and says so. */
export function CopyButton(props: {
  text: string;
  name: string;
  trans: TranslationBundle;
}): JSX.Element {
  const { text, name, trans } = props;
  const [copied, setCopied] = React.useState(0);
  React.useEffect(() => {
    if (copied > 0) {
      const timer = setTimeout(() => setCopied(0), COPIED_FOR);
      return () => clearTimeout(timer);
    }
    return undefined;
  }, [copied]);
  const Icon = copied ? checkIcon : copyIcon;
  const label = trans.__('Copy %1', name);
  return (
    <>
      <button
        type="button"
        className="jp-ClearML-iconButton"
        aria-label={label}
        title={label}
        onClick={() => {
          Clipboard.copyToSystem(text);
          setCopied(count => count + 1);
        }}
      >
        <Icon.react tag="span" className="jp-ClearML-icon" />
      </button>
      <span role="status" className="jp-ClearML-hidden">
        {copied > 0 && trans.__('Copied')}
      </span>
    </>
  );
}
