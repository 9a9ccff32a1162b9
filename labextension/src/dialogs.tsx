/** The small dialogs: a port, a forward, the kernels of a session, the clean-up. */
import {
  Clipboard,
  Dialog,
  InputDialog,
  ReactWidget,
  showDialog
} from '@jupyterlab/apputils';
import { PathExt } from '@jupyterlab/coreutils';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { findTaskId } from './actions';
import { SessionError } from './request';
import type { SessionAPI } from './request';
import type { IForward, IRemoteKernel, ISession, ITask } from './tokens';
import { shortId } from './tokens';
import { ago } from './text';

/** Ask for a port of the remote machine; null when the user thought better of it. */
export async function portDialog(trans: TranslationBundle): Promise<number | null> {
  const result = await InputDialog.getNumber({
    title: trans.__('Open a port of the session'),
    label: trans.__('Port on the remote machine'),
    value: 6006,
    okLabel: trans.__('Open')
  });
  const port = result.value;
  if (!result.button.accept || port === null) {
    return null;
  }
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new SessionError(
      {
        code: 'invalid_input',
        message: trans.__('A port is a whole number from 1 to 65535')
      },
      400
    );
  }
  return port;
}

/** Ask for the sessions to delete; all of them are chosen at first. */
export async function confirmCleanUp(
  ended: ReadonlyArray<ISession>,
  trans: TranslationBundle
): Promise<ISession[]> {
  if (ended.length === 0) {
    await showDialog({
      title: trans.__('Clean up'),
      body: trans.__('You have no ended sessions.'),
      buttons: [Dialog.okButton({ label: trans.__('Close') })]
    });
    return [];
  }
  const body = new CleanUpBody(ended, trans);
  const result = await showDialog({
    title: trans.__('Delete ended sessions from ClearML?'),
    body,
    buttons: [
      Dialog.cancelButton({ label: trans.__('Cancel') }),
      Dialog.warnButton({ label: trans.__('Delete Chosen') })
    ],
    defaultButton: 0
  });
  return result.button.accept ? (result.value ?? []) : [];
}

class CleanUpBody extends ReactWidget implements Dialog.IBodyWidget<ISession[]> {
  constructor(
    private readonly _ended: ReadonlyArray<ISession>,
    private readonly _trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-ClearML-dialog');
    this._chosen = new Set(_ended.map(session => session.id));
  }

  getValue(): ISession[] {
    return this._ended.filter(session => this._chosen.has(session.id));
  }

  protected override render(): JSX.Element {
    const trans = this._trans;
    return (
      <>
        <p>
          {trans.__(
            'The Tasks, logs and stored workspaces of the chosen sessions are deleted. This cannot be undone.'
          )}
        </p>
        <ul className="jp-ClearML-choices">
          {this._ended.map(session => (
            <li key={session.id}>
              <label>
                <input
                  type="checkbox"
                  defaultChecked
                  onChange={event => {
                    if (event.target.checked) {
                      this._chosen.add(session.id);
                    } else {
                      this._chosen.delete(session.id);
                    }
                  }}
                />
                <span className="jp-ClearML-choice-name">{session.name}</span>
                <span className="jp-ClearML-dim">
                  {shortId(session.id)}
                  {session.ended && ` · ${ago(session.ended, trans)}`}
                  {session.spec.store_workspace && ` · ${trans.__('has a workspace')}`}
                </span>
              </label>
            </li>
          ))}
        </ul>
      </>
    );
  }

  private readonly _chosen: Set<string>;
}

/** Show the kernels of a session. They can be ended here; returns the one that is to be connected to. */
export async function kernelsDialog(
  api: SessionAPI,
  session: ISession,
  trans: TranslationBundle
): Promise<IRemoteKernel | null> {
  const kernels = await api.kernels(session.id);
  let chosen: IRemoteKernel | null = null;
  const connect = (kernel: IRemoteKernel) => {
    chosen = kernel;
    dialog.reject();
  };
  const dialog: Dialog<unknown> = new Dialog({
    title: trans.__('Kernels on %1', session.name),
    body: (
      <Kernels
        api={api}
        session={session}
        kernels={kernels}
        trans={trans}
        onConnect={connect}
      />
    ),
    buttons: [Dialog.okButton({ label: trans.__('Close') })]
  });
  await dialog.launch();
  return chosen;
}

interface IKernelsProps {
  api: SessionAPI;
  session: ISession;
  kernels: IRemoteKernel[];
  trans: TranslationBundle;
  onConnect: (kernel: IRemoteKernel) => void;
}

function Kernels(props: IKernelsProps): JSX.Element {
  const { api, session, trans } = props;
  const [kernels, setKernels] = React.useState(props.kernels);
  const [error, setError] = React.useState('');
  const kill = async (kernel: IRemoteKernel) => {
    try {
      await api.killKernel(session.id, kernel.id);
      setKernels(await api.kernels(session.id));
      setError('');
    } catch (reason) {
      setError(SessionError.from(reason).message);
    }
  };
  if (kernels.length === 0) {
    return <p>{trans.__('No kernel lives there now.')}</p>;
  }
  return (
    <div className="jp-ClearML-dialog">
      <table className="jp-ClearML-table">
        <thead>
          <tr>
            <th scope="col">{trans.__('Kernel')}</th>
            <th scope="col">{trans.__('State')}</th>
            <th scope="col">{trans.__('Here')}</th>
            <th scope="col">
              <span className="jp-ClearML-hidden">{trans.__('Actions')}</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {kernels.map(kernel => (
            <tr key={kernel.id} data-kernel-id={kernel.id}>
              <td>
                {kernel.name} <code>{shortId(kernel.id)}</code>
                {kernel.meta?.notebook && (
                  <div className="jp-ClearML-dim" title={kernel.meta.notebook}>
                    {PathExt.basename(kernel.meta.notebook)}
                  </div>
                )}
              </td>
              <td>{kernel.state}</td>
              <td>
                {kernel.adopted ? trans.__('connected') : trans.__('not connected')}
              </td>
              <td className="jp-ClearML-actions">
                <button
                  type="button"
                  className="jp-ClearML-button jp-mod-primary"
                  onClick={() => props.onConnect(kernel)}
                >
                  {trans.__('Connect…')}
                </button>
                <button
                  type="button"
                  className="jp-ClearML-button"
                  onClick={() => void kill(kernel)}
                >
                  {trans.__('Shut Down')}
                </button>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <p role="alert" className="jp-ClearML-fieldError">
        {error}
      </p>
    </div>
  );
}

/** Find a Task by a part of its name, by its id or by its address in ClearML; returns its id. */
export async function taskDialog(
  api: SessionAPI,
  trans: TranslationBundle
): Promise<string | null> {
  const result = await showDialog({
    title: trans.__('Debug a Task'),
    body: new TaskSearch(api, trans),
    buttons: [
      Dialog.cancelButton({ label: trans.__('Cancel') }),
      Dialog.okButton({ label: trans.__('Continue') })
    ],
    focusNodeSelector: 'input'
  });
  return result.button.accept ? (result.value ?? null) : null;
}

/** Milliseconds that a pause in typing lasts. */
const PAUSE = 300;

class TaskSearch extends ReactWidget implements Dialog.IBodyWidget<string | null> {
  constructor(
    private readonly _api: SessionAPI,
    private readonly _trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-ClearML-dialog');
  }

  getValue(): string | null {
    return this._chosen;
  }

  protected override render(): JSX.Element {
    return (
      <Tasks
        api={this._api}
        trans={this._trans}
        onChoose={id => {
          this._chosen = id;
        }}
      />
    );
  }

  private _chosen: string | null = null;
}

function Tasks(props: {
  api: SessionAPI;
  trans: TranslationBundle;
  onChoose: (id: string | null) => void;
}): JSX.Element {
  const { api, trans, onChoose } = props;
  const [text, setText] = React.useState('');
  const [tasks, setTasks] = React.useState<ITask[] | null>(null);
  const [chosen, setChosen] = React.useState<string | null>(null);
  const [error, setError] = React.useState('');
  React.useEffect(() => {
    const aborter = new AbortController();
    const search = async () => {
      try {
        const found = await api.tasks(findTaskId(text) ?? text.trim(), aborter.signal);
        setTasks(found);
        setError('');
        setChosen(found.length === 1 ? found[0].id : null);
      } catch (reason) {
        if (!aborter.signal.aborted) {
          setError(SessionError.from(reason).message);
        }
      }
    };
    const timer = setTimeout(() => void search(), text ? PAUSE : 0);
    return () => {
      clearTimeout(timer);
      aborter.abort();
    };
  }, [api, text]);
  // An id can be meant that the search does not find: the server says at launch what is wrong with it.
  React.useEffect(() => onChoose(chosen ?? findTaskId(text)), [chosen, text, onChoose]);
  return (
    <>
      <label className="jp-ClearML-field">
        <span className="jp-ClearML-label">
          {trans.__('Part of the name, the id, or the address in ClearML')}
        </span>
        <input
          type="search"
          className="jp-ClearML-input"
          spellCheck={false}
          value={text}
          onChange={event => setText(event.target.value)}
        />
      </label>
      <div
        role="radiogroup"
        aria-label={trans.__('Tasks')}
        className="jp-ClearML-choices"
      >
        {(tasks ?? []).map(task => (
          <label key={task.id}>
            <input
              type="radio"
              name="jp-ClearML-task"
              checked={chosen === task.id}
              onChange={() => setChosen(task.id)}
            />
            <span className="jp-ClearML-choice-name">{task.name}</span>
            <span className="jp-ClearML-dim">
              {[
                task.project,
                task.status,
                task.created ? ago(task.created, trans) : '',
                task.repository || trans.__('no repository')
              ]
                .filter(Boolean)
                .join(' · ')}
            </span>
          </label>
        ))}
      </div>
      <p role="status" className={error ? 'jp-ClearML-fieldError' : 'jp-ClearML-dim'}>
        {error ||
          (tasks === null
            ? trans.__('Searching…')
            : tasks.length === 0
              ? trans.__('No Task found.')
              : '')}
      </p>
    </>
  );
}

/** Ask for a remote port, or for SSH, open a local port for it and show what leads there. */
export async function forwardDialog(
  api: SessionAPI,
  session: ISession,
  trans: TranslationBundle
): Promise<void> {
  const ssh = trans.__('SSH (for VS Code or PyCharm on this machine)');
  const result = await InputDialog.getItem({
    title: trans.__('Forward a port of %1', session.name),
    label: trans.__(
      'Port on the remote machine. The local port is open to every user of this machine.'
    ),
    items: [ssh, '6006', '8000', '8888'],
    editable: true,
    okLabel: trans.__('Forward')
  });
  if (!result.button.accept || !result.value) {
    return;
  }
  const port = result.value === ssh ? 'ssh' : Number(result.value);
  const forward = await api.forward(session.id, port);
  await showDialog({
    title: trans.__('Forwarded to local port %1', forward.local_port),
    body: <Forward forward={forward} trans={trans} />,
    buttons: [Dialog.okButton({ label: trans.__('Close') })]
  });
}

function Forward({
  forward,
  trans
}: {
  forward: IForward;
  trans: TranslationBundle;
}): JSX.Element {
  const texts = [
    forward.ssh_command,
    forward.ssh_config,
    forward.ssh_command ? undefined : `http://127.0.0.1:${forward.local_port}/`
  ].filter((text): text is string => Boolean(text));
  return (
    <div className="jp-ClearML-dialog">
      {texts.map(text => (
        <div key={text} className="jp-ClearML-copyable">
          <pre>{text}</pre>
          <button
            type="button"
            className="jp-ClearML-button"
            onClick={() => Clipboard.copyToSystem(text)}
          >
            {trans.__('Copy')}
          </button>
        </div>
      ))}
    </div>
  );
}
