import {
  act,
  cleanup,
  configure,
  fireEvent,
  render,
  screen
} from '@testing-library/react';
import { Clipboard, Dialog, ReactWidget } from '@jupyterlab/apputils';
import { nullTranslator } from '@jupyterlab/translation';
import { PromiseDelegate } from '@lumino/coreutils';
import * as React from 'react';

import { attachDialog } from '../attachDialog';
import { BodyDialog } from '../dialog';
import { kernelsDialog } from '../kernelsDialog';
import { Launcher } from '../launchDialog';
import { Forwards, parsePort, portDialog } from '../portDialogs';
import { SessionError } from '../request';
import { serverDialog } from '../serverDialog';
import { sshDialog } from '../sshDialog';
import { fakeAPI, id, session, settle, startedModel, trans } from './parts';

// jsdom knows <dialog>, but cannot open one: all in it counts as hidden.
configure({ defaultHidden: true });

const READY = session(1, 'ready');

afterEach(() => {
  cleanup();
  Dialog.flush();
  jest.restoreAllMocks();
});

function field(label: string): HTMLInputElement {
  return screen.getByLabelText<HTMLInputElement>(label);
}

function button(name: string | RegExp): HTMLButtonElement {
  return screen.getByRole<HTMLButtonElement>('button', { name });
}

async function click(name: string | RegExp): Promise<void> {
  fireEvent.click(button(name));
  await act(settle);
}

function pressEnter(target: Element): Event {
  const event = new KeyboardEvent('keydown', {
    key: 'Enter',
    bubbles: true,
    cancelable: true
  });
  target.dispatchEvent(event);
  return event;
}

/** As a browser does: a disabled control has no focus, whatever `document.activeElement` says at the moment. */
function pressEscape(): void {
  const { activeElement } = document;
  const target = activeElement?.matches(':disabled') ? document.body : activeElement;
  target?.dispatchEvent(
    new KeyboardEvent('keydown', { key: 'Escape', keyCode: 27, bubbles: true })
  );
}

describe('parsePort', () => {
  it.each([
    ['6006', 6006],
    [' 80 ', 80],
    ['65535', 65_535],
    ['0', null],
    ['65536', null],
    ['', null],
    ['8e3', null],
    ['-1', null]
  ])('%j is %j', (text, port) => {
    expect(parsePort(text)).toBe(port);
  });
});

describe('portDialog', () => {
  const ports = [
    { port: 6006, process: 'tensorboard.main' },
    { port: 8888, process: '' }
  ];

  async function opened(listening = jest.fn().mockResolvedValue(ports)) {
    const done = portDialog(fakeAPI({ ports: listening }), READY, trans);
    await act(settle);
    const accept = screen.getByRole<HTMLButtonElement>('button', { name: 'Open' });
    return { done, accept };
  }

  it('lists what listens, to choose from', async () => {
    const { done, accept } = await opened();
    expect(accept.disabled).toBe(true);
    fireEvent.click(screen.getByRole('radio', { name: /tensorboard/ }));
    await act(settle);
    expect(field('Port').value).toBe('6006');
    accept.click();
    await expect(done).resolves.toBe(6006);
  });

  it('takes a typed number, also where it cannot be told what listens', async () => {
    const { done, accept } = await opened(
      jest.fn().mockRejectedValue(new Error('no /proc'))
    );
    expect(screen.getByText('no /proc')).toBeTruthy();
    fireEvent.change(field('Port'), { target: { value: '70000' } });
    await act(settle);
    expect(field('Port').getAttribute('aria-invalid')).toBe('true');
    expect(accept.disabled).toBe(true);
    fireEvent.change(field('Port'), { target: { value: '8501' } });
    await act(settle);
    accept.click();
    await expect(done).resolves.toBe(8501);
  });
});

describe('Forwards', () => {
  async function shown(calls: Parameters<typeof fakeAPI>[0] = {}) {
    const open = [
      { local_port: 40_022, remote_port: 'ssh' as const },
      { local_port: 40_023, remote_port: 6006 }
    ];
    const api = fakeAPI({
      ports: jest.fn().mockResolvedValue([{ port: 6006, process: 'tensorboard' }]),
      forwards: jest.fn().mockResolvedValue(open.slice(0, 1)),
      ...calls
    });
    render(<Forwards api={api} session={READY} forwards={open} trans={trans} />);
    await act(settle);
  }

  it('are listed with what they lead to', async () => {
    await shown();
    const rows = screen.getAllByRole('row').map(row => row.textContent);
    expect(rows).toHaveLength(3);
    expect(rows[1]).toContain('127.0.0.1:40022SSH');
    expect(rows[2]).toContain('6006 · tensorboard');
  });

  it('are closed one by one', async () => {
    const closeForward = jest.fn().mockResolvedValue(null);
    await shown({ closeForward });
    await click('Close local port 40023');
    expect(closeForward).toHaveBeenCalledWith(id(1), 40_023);
    expect(screen.getAllByRole('row')).toHaveLength(2);
  });

  it('are opened at any free port, or at the one that is named', async () => {
    const forward = jest.fn().mockResolvedValue({ local_port: 1, remote_port: 8000 });
    await shown({ forward });
    expect(
      screen.getByRole<HTMLButtonElement>('button', { name: 'Open' }).disabled
    ).toBe(true);
    fireEvent.change(field('Port over there'), { target: { value: '8000' } });
    fireEvent.keyDown(field('Port over there'), { key: 'Enter' });
    await act(settle);
    fireEvent.change(field('Port over there'), { target: { value: '8000' } });
    fireEvent.change(field('Port here'), { target: { value: '9000' } });
    await click('Open');
    expect(forward.mock.calls).toEqual([
      [id(1), 8000, { localPort: undefined }],
      [id(1), 8000, { localPort: 9000 }]
    ]);
  });

  it('say why one could not be opened, and keep what was typed', async () => {
    const late = { code: 'deadline', message: 'No answer', hint: 'Look first' };
    await shown({ forward: jest.fn().mockRejectedValue(new SessionError(late, 0)) });
    fireEvent.change(field('Port over there'), { target: { value: '8000' } });
    await click('Open');
    expect(screen.getByText('No answer. Look first')).toBeTruthy();
    expect(field('Port over there').value).toBe('8000');
  });
});

describe('sshDialog', () => {
  const answer = {
    local_port: 40_022,
    remote_port: 'ssh',
    ssh_command: 'ssh -p 40022'
  };

  it('shows the password only on request, and never again by itself', async () => {
    const forward = jest
      .fn()
      .mockResolvedValueOnce(answer)
      .mockResolvedValue({ ...answer, password: 's3cret' });
    const done = sshDialog(fakeAPI({ forward }), READY, trans);
    await act(settle);
    expect(forward.mock.calls).toEqual([[id(1), 'ssh']]);
    expect(document.body.textContent).not.toContain('s3cret');
    await click('Show Password');
    expect(forward.mock.calls[1]).toEqual([id(1), 'ssh', { showPassword: true }]);
    expect(screen.getByText('s3cret')).toBeTruthy();
    await click('Hide Password');
    expect(document.body.textContent).not.toContain('s3cret');
    await click('Done');
    await done;
    expect(document.querySelector('.jp-Dialog')).toBeNull();
  });

  it('says why the password cannot be shown, and what to do', async () => {
    const forward = jest
      .fn()
      .mockResolvedValueOnce(answer)
      .mockRejectedValue(
        new SessionError(
          { code: 'not_attached', message: 'Not attached', hint: 'Attach first' },
          409
        )
      );
    const done = sshDialog(fakeAPI({ forward }), READY, trans);
    await act(settle);
    await click('Show Password');
    expect(screen.getByText('Not attached. Attach first')).toBeTruthy();
    await click('Done');
    await done;
  });

  it('copies the command, and says so', async () => {
    const copy = jest.spyOn(Clipboard, 'copyToSystem').mockImplementation();
    const forward = jest.fn().mockResolvedValue(answer);
    const done = sshDialog(fakeAPI({ forward }), READY, trans);
    await act(settle);
    await click('Copy the command');
    expect(copy).toHaveBeenCalledWith('ssh -p 40022');
    expect(screen.getByText('Copied')).toBeTruthy();
    await click('Done');
    await done;
  });
});

describe('kernelsDialog', () => {
  const kernel = { id: id(7), name: 'python3', state: 'idle', idle_s: 7200 };

  it('is there before the answer, tells a failure, and asks again', async () => {
    const first = new PromiseDelegate<never>();
    const kernels = jest
      .fn()
      .mockReturnValueOnce(first.promise)
      .mockResolvedValue([kernel]);
    const done = kernelsDialog(fakeAPI({ kernels }), READY, trans);
    await act(settle);
    expect(screen.getByText('Asking the machine…')).toBeTruthy();
    first.reject(new Error('The connection is down'));
    await act(settle);
    expect(screen.getByRole('alert').textContent).toBe('The connection is down');
    await click('Try Again');
    expect(screen.getAllByRole('row')[1].textContent).toContain('idle for 2 hours');
    await click('Close');
    await expect(done).resolves.toBeNull();
  });
});

describe('a kernel that is shut down', () => {
  const kernels = [7, 8].map(number => ({ id: id(number), name: 'k', state: 'idle' }));

  it('is gone also where the list cannot be had again, and that is said', async () => {
    const late = new SessionError(
      { code: 'deadline', message: 'No answer', hint: 'Try again' },
      504
    );
    const api = fakeAPI({
      kernels: jest.fn().mockResolvedValueOnce(kernels).mockRejectedValue(late),
      killKernel: jest.fn().mockResolvedValue(undefined)
    });
    const done = kernelsDialog(api, READY, trans);
    await act(settle);
    fireEvent.click(screen.getAllByRole('button', { name: 'Shut Down' })[0]);
    await act(settle);
    expect(screen.getByRole('alert').textContent).toBe(
      'The kernel was shut down, but the list could not be brought up to date: No answer'
    );
    expect(screen.getAllByRole('button', { name: 'Shut Down' })).toHaveLength(1);
    await click('Close');
    await done;
  });
});

describe('serverDialog', () => {
  async function opened(configure: jest.Mock) {
    const api = fakeAPI({ configure });
    const done = serverDialog(await startedModel(api), trans);
    await act(settle);
    fireEvent.change(field('Access key'), { target: { value: 'K' } });
    return { api, done };
  }

  it('says what ends, and closes when the server has accepted the credentials', async () => {
    const { api, done } = await opened(jest.fn().mockResolvedValue(undefined));
    expect(screen.getByText(/the sessions on it with all that runs/)).toBeTruthy();
    api.status.mockClear();
    fireEvent.submit(field('Access key'));
    await act(settle);
    await done;
    expect(api.configure.mock.calls[0][0]).toMatchObject({ access_key: 'K' });
    expect(api.status).toHaveBeenCalled(); // the panel shows the new server at once
  });

  it('stays with what was typed where it does not, or when that is cancelled', async () => {
    const checking = new PromiseDelegate<never>();
    const configure = jest
      .fn()
      .mockRejectedValueOnce(
        new SessionError(
          { code: 'conflict', message: 'There is a file', hint: 'Move it away' },
          409
        )
      )
      .mockReturnValue(checking.promise);
    const { done } = await opened(configure);
    fireEvent.submit(field('Access key'));
    await act(settle);
    expect(screen.getByRole('alert').textContent).toBe('There is a fileMove it away');
    fireEvent.submit(field('Access key'));
    await act(settle);
    expect(button('Checking…').disabled).toBe(true);
    await click('Cancel');
    const signal = configure.mock.calls[1][1] as AbortSignal;
    expect(signal.aborted).toBe(true);
    checking.reject(new SessionError({ code: 'cancelled', message: '' }, 0));
    await act(settle);
    expect(button('Connect').disabled).toBe(false);
    expect(field('Access key').value).toBe('K');
    await click('Close');
    await done;
  });

  it('leaves Enter to the form', async () => {
    const { done } = await opened(jest.fn());
    field('Access key').focus();
    expect(pressEnter(field('Access key')).defaultPrevented).toBe(false);
    expect(field('Access key').isConnected).toBe(true);
    await click('Close');
    await done;
  });
});

describe('attachDialog', () => {
  const address = `https://app.example.org/projects/*/experiments/${id(5)}/output`;

  async function opened(attach: jest.Mock) {
    const done = attachDialog(attach, trans);
    await act(settle);
    const accept = screen.getByRole<HTMLButtonElement>('button', { name: 'Attach' });
    return {
      done,
      accept,
      input: field('Id of the session, or its address in ClearML')
    };
  }

  it('takes an address, and nothing that holds no id', async () => {
    const attach = jest.fn().mockResolvedValue(session(5, 'connecting'));
    const { done, accept, input } = await opened(attach);
    fireEvent.change(input, { target: { value: 'nonsense' } });
    await act(settle);
    expect(accept.disabled).toBe(true);
    fireEvent.change(input, { target: { value: address } });
    await act(settle);
    accept.click();
    expect((await done)?.id).toBe(id(5));
    expect(attach).toHaveBeenCalledWith(id(5));
  });

  it('stays with what was typed where that does not work', async () => {
    const unknown = new SessionError(
      { code: 'unknown_session', message: 'No such session', hint: 'Look again' },
      404
    );
    const { done, accept, input } = await opened(jest.fn().mockRejectedValue(unknown));
    fireEvent.change(input, { target: { value: id(5) } });
    accept.click();
    await act(settle);
    expect(screen.getByRole('alert').textContent).toBe('No such session. Look again');
    expect(input.value).toBe(id(5));
    fireEvent.change(input, { target: { value: id(6) } });
    await act(settle);
    expect(screen.getByRole('alert').textContent).toBe('');
    await click('Cancel');
    await expect(done).resolves.toBeNull();
  });
});

describe('the launch dialog', () => {
  it('is where the keyboard goes, also before there are options, or where there are none', async () => {
    const answer = new PromiseDelegate<never>();
    const api = fakeAPI({ schema: jest.fn().mockReturnValue(answer.promise) });
    render(<button type="button">opener</button>);
    button('opener').focus();
    const done = new Launcher(await startedModel(api), nullTranslator).launch();
    await act(settle);
    const dialog = document.querySelector('.jp-Dialog') as Element;
    expect(dialog.contains(document.activeElement)).toBe(true);
    answer.reject(new Error('nobody answers'));
    await act(settle);
    expect(screen.getByText('nobody answers')).toBeTruthy();
    expect(dialog.contains(document.activeElement)).toBe(true);
    pressEscape();
    await expect(done).resolves.toBeNull();
  });

  it.each(['Name', 'Launch'])(
    'is cancelled by Escape while it launches, begun from %s',
    async name => {
      const api = fakeAPI({ launch: jest.fn(() => new Promise(() => undefined)) });
      const done = new Launcher(await startedModel(api), nullTranslator).launch();
      await act(settle);
      const control = name === 'Launch' ? button(name) : field(name);
      control.focus();
      pressEnter(control);
      await act(settle);
      expect(api.launch).toHaveBeenCalledTimes(1);
      pressEscape();
      await expect(done).resolves.toBeNull();
    }
  );
});

describe('an upload', () => {
  const uploading = session(2, 'created', {
    progress: { step: 1, steps: 5, text: 'Uploading', last_line: '', fraction: 0.4 }
  });

  async function launching() {
    const api = fakeAPI({
      launch: jest.fn(() => new Promise(() => undefined)),
      shutdown: jest.fn().mockResolvedValue(uploading)
    });
    const model = await startedModel(api);
    const launcher = new Launcher(model, nullTranslator);
    const done = launcher.launch();
    await act(settle);
    await click('Launch');
    act(() => model.put(uploading));
    return { api, done };
  }

  async function cancelled({ api, done }: Awaited<ReturnType<typeof launching>>) {
    await click('Cancel');
    await expect(done).resolves.toBeNull();
    expect(api.shutdown).toHaveBeenCalledWith(uploading.id);
  }

  it('is shown in the launch dialog, which ends it when it is cancelled', async () => {
    const launch = await launching();
    const bar = screen.getByRole('progressbar', { name: 'Uploading' });
    expect(bar.getAttribute('aria-valuenow')).toBe('40');
    await cancelled(launch);
  });

  it('is not lost sight of, nor is more launched, when Enter is pressed again', async () => {
    const launch = await launching();
    pressEnter(document.querySelector('.jp-Dialog') as Element);
    await act(settle);
    expect(launch.api.launch).toHaveBeenCalledTimes(1);
    expect(screen.getByRole('progressbar', { name: 'Uploading' })).toBeTruthy();
    await cancelled(launch);
  });

  it('is not the time to save presets', async () => {
    const launch = await launching();
    expect(button('Save as Preset…').disabled).toBe(true);
    expect(field('Begin with').disabled).toBe(true);
    await cancelled(launch);
    expect(launch.api.savePreset).not.toHaveBeenCalled();
  });
});

describe('BodyDialog', () => {
  it('leaves Enter to the buttons of its body, and takes it everywhere else', async () => {
    const body = ReactWidget.create(
      <>
        <button type="button">own</button>
        <input />
      </>
    );
    const dialog = new BodyDialog({
      body,
      buttons: [Dialog.okButton({ label: 'Ok' })]
    });
    let closed = false;
    void dialog.launch().then(() => (closed = true));
    await act(settle);
    const own = screen.getByRole('button', { name: 'own' });
    own.focus();
    expect(pressEnter(own).defaultPrevented).toBe(false);
    await act(settle);
    expect(closed).toBe(false);
    const input = dialog.node.querySelector('input');
    input?.focus();
    pressEnter(input as Element);
    await act(settle);
    expect(closed).toBe(true);
  });

  it('has the focus in its body as soon as it is shown, and does not take it back', async () => {
    const dialog = new BodyDialog({
      body: ReactWidget.create(
        <>
          <input aria-label="first" />
          <input aria-label="second" />
        </>
      ),
      focusNodeSelector: 'input'
    });
    void dialog.launch();
    await Promise.resolve(); // the dialogs before this one are closed
    await Promise.resolve();
    expect(document.activeElement).toBe(screen.getByLabelText('first'));
    screen.getByLabelText('second').focus();
    await act(settle);
    expect(document.activeElement).toBe(screen.getByLabelText('second'));
    dialog.reject();
  });

  it('gives the focus back, also where its body takes it when it is drawn', async () => {
    function Greedy(): JSX.Element {
      const input = React.useRef<HTMLInputElement>(null);
      React.useEffect(() => input.current?.focus(), []);
      return <input ref={input} />;
    }
    render(<button type="button">opener</button>);
    const opener = screen.getByRole('button', { name: 'opener' });
    opener.focus();
    const dialog = new BodyDialog({ body: ReactWidget.create(<Greedy />) });
    void dialog.launch();
    await act(settle);
    expect(document.activeElement).not.toBe(opener);
    dialog.reject();
    await act(settle);
    expect(document.activeElement).toBe(opener);
  });

  it('is not accepted before its body is ready, but can be cancelled', async () => {
    const dialog = new BodyDialog({
      body: ReactWidget.create(<input />),
      buttons: [Dialog.cancelButton(), Dialog.okButton({ label: 'Ok' })]
    });
    const done = dialog.launch();
    await act(settle);
    dialog.acceptable = false;
    fireEvent.input(screen.getByRole('textbox'), { target: { value: 'typed' } });
    expect(button('Ok').disabled).toBe(true);
    dialog.resolve();
    expect(dialog.isDisposed).toBe(false);
    dialog.resolve(0);
    expect((await done).button.accept).toBe(false);
  });
});
