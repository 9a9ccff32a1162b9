import {
  act,
  cleanup,
  fireEvent,
  render,
  screen,
  within
} from '@testing-library/react';
import { CommandRegistry } from '@lumino/commands';
import * as React from 'react';

import { announcer } from '../announcer';
import { Card, ErrorBox } from '../card';
import { CommandIDs } from '../commandIds';
import { LaunchDraft } from '../launchDraft';
import { LaunchForm } from '../launchDialog';
import { Log } from '../log';
import { Panel } from '../panel';
import { SessionError } from '../request';
import { Ssh } from '../sshDialog';
import { statusText } from '../status';
import type { ISession, ISessionModel } from '../tokens';
import type { FakeAPI } from './parts';
import { SERVER, fakeAPI, id, session, settle, startedModel, trans } from './parts';

function commandsThatNote(noted: string[]): CommandRegistry {
  const commands = new CommandRegistry();
  for (const command of Object.values(CommandIDs)) {
    commands.addCommand(command, {
      label: command.split(':')[1],
      execute: args => {
        noted.push(`${command.split(':')[1]} ${String(args.id ?? '')}`.trim());
      }
    });
  }
  return commands;
}

async function panel(calls: Partial<FakeAPI> = {}) {
  const api = fakeAPI(calls);
  const model = await startedModel(api);
  const noted: string[] = [];
  const commands = commandsThatNote(noted);
  const show = () => <Panel model={model} commands={commands} trans={trans} />;
  const { rerender } = render(show());
  model.changed.connect(() => act(() => rerender(show())));
  return { api, model: model as ISessionModel, noted };
}

afterEach(() => {
  cleanup();
  jest.restoreAllMocks();
});

describe('Card', () => {
  it('shows the phase as text and the progress to screen readers', () => {
    const starting = session(1, 'starting', {
      progress: { step: 3, steps: 5, text: 'Setting up', last_line: 'pip install' }
    });
    render(
      <Card
        api={fakeAPI({})}
        session={starting}
        commands={new CommandRegistry()}
        trans={trans}
      />
    );
    const card = screen.getByRole('article', { name: 'Session session 1: Starting' });
    expect(card.dataset.phase).toBe('starting');
    const bar = within(card).getByRole('progressbar');
    expect(bar.getAttribute('aria-valuenow')).toBe('50');
    expect(bar.getAttribute('aria-valuetext')).toBe('Setting up');
    expect(within(card).getByText('pip install')).toBeTruthy();
  });

  it('runs the commands on its session', async () => {
    const noted: string[] = [];
    render(
      <Card
        api={fakeAPI({})}
        session={session(1, 'ready')}
        commands={commandsThatNote(noted)}
        trans={trans}
      />
    );
    fireEvent.click(screen.getByRole('button', { name: 'open-terminal' }));
    await act(settle);
    expect(noted).toEqual([`open-terminal ${id(1)}`]);
  });

  it.each([
    ['dismissed', true],
    ['deleted', false]
  ])('lets a failed session be %s', (way, isActive) => {
    const commands = new CommandRegistry();
    for (const command of [CommandIDs.dismiss, CommandIDs.deleteSession]) {
      commands.addCommand(command, {
        label: command === CommandIDs.dismiss ? 'dismissed' : 'deleted',
        isVisible: () => command !== CommandIDs.dismiss || isActive,
        execute: jest.fn()
      });
    }
    render(
      <Card
        api={fakeAPI({})}
        session={session(1, 'failed')}
        commands={commands}
        trans={trans}
      />
    );
    const ways = screen.getAllByRole('button', { name: /dismissed|deleted/ });
    expect(ways.map(button => button.textContent)).toEqual([way]);
  });

  it('shows a failure with its hint and the tail of the log', () => {
    const error = {
      code: 'session_failed',
      message: 'It failed',
      hint: 'Look at the log',
      detail: { log_tail: ['one', 'two'] }
    };
    render(<ErrorBox error={error} trans={trans} />);
    const box = screen.getByRole('alert');
    expect(box.textContent).toContain('It failed');
    expect(box.textContent).toContain('Look at the log');
    expect(box.querySelector('pre')?.textContent).toBe('one\ntwo');
  });

  it('reads a failure out that comes while it is in sight, and no older one', () => {
    const error = { code: 'session_failed', message: 'It failed' };
    const show = (changes: Partial<ISession>) => (
      <Card
        api={fakeAPI({})}
        session={session(1, 'failed', changes)}
        commands={new CommandRegistry()}
        trans={trans}
      />
    );
    const { rerender } = render(show({ error }));
    expect(screen.getByText('It failed')).toBeTruthy();
    rerender(show({ error: { ...error } }));
    expect(screen.queryByRole('alert')).toBeNull();
    rerender(show({ phase: 'connecting' }));
    rerender(show({ error }));
    expect(screen.getByRole('alert').textContent).toBe('It failed');
  });

  it('says quietly why a session has no kernels, as long as it has none', () => {
    const show = (changes: Partial<ISession>) => (
      <Card
        api={fakeAPI({})}
        session={session(1, 'ready', changes)}
        commands={new CommandRegistry()}
        trans={trans}
      />
    );
    const error = {
      code: 'helper_failed',
      message: 'There is no Python',
      hint: 'Detach and attach again'
    };
    const { rerender } = render(show({ kernels_error: error }));
    const note = screen.getByRole('note');
    expect(note.textContent).toBe(
      'No kernels: There is no PythonDetach and attach again'
    );
    expect(screen.queryByRole('alert')).toBeNull();
    expect(screen.getByText('Kernels').nextElementSibling?.textContent).toBe(
      'not available: There is no Python'
    );
    rerender(show({ kernelspecs: ['clearml-1-python3'] }));
    expect(screen.queryByRole('note')).toBeNull();
    expect(screen.getByText('Kernels').nextElementSibling?.textContent).toBe(
      'clearml-1-python3'
    );
  });

  it('warns of a host key that proves nothing', () => {
    const running = session(1, 'services_up', {
      tunnel: {
        state: 'down',
        since: null,
        attempt: 0,
        rtt_ms: null,
        host_key: 'unverified'
      }
    });
    render(
      <Card
        api={fakeAPI({})}
        session={running}
        commands={new CommandRegistry()}
        trans={trans}
      />
    );
    const badge = screen.getByText('not verified');
    expect(badge.dataset.kind).toBe('warn');
    expect(badge.title).toContain('prove nothing');
  });
});

describe('the way in with ssh', () => {
  it.each([
    ['pinned', 'Host key: verified. Made for this session alone'],
    ['vault', 'Host key: from the vault. The key that the ClearML vault names'],
    ['unverified', 'Host key: not verified. This session uses the default keys']
  ] as const)('promises of a %s host key what it proves', (hostKey, words) => {
    const { tunnel } = session(1, 'ready');
    render(
      <Ssh
        api={fakeAPI({})}
        session={session(1, 'ready', { tunnel: { ...tunnel, host_key: hostKey } })}
        forward={{ local_port: 40_022, remote_port: 'ssh' }}
        trans={trans}
      />
    );
    expect(screen.getByText(/^Host key: /).textContent).toContain(words);
    expect(screen.queryByText(/The host key of the session is checked/)).toBeNull();
  });
});

describe('Panel', () => {
  it('shows the sessions of the server and of the user', async () => {
    await panel({
      sessions: jest.fn().mockResolvedValue({
        sessions: [session(1, 'ready'), session(2, 'queued')],
        revision: 1
      })
    });
    expect(screen.getAllByRole('article')).toHaveLength(2);
    expect(screen.getByText('ada · api.example.org')).toBeTruthy();
  });

  it('filters', async () => {
    await panel({
      sessions: jest.fn().mockResolvedValue({
        sessions: [session(1, 'ready', { name: 'vision' }), session(2, 'queued')],
        revision: 1
      })
    });
    fireEvent.change(screen.getByRole('searchbox'), { target: { value: 'vis' } });
    expect(screen.getAllByRole('article')).toHaveLength(1);
    fireEvent.change(screen.getByRole('searchbox'), { target: { value: 'xyz' } });
    expect(screen.getByText('No active session matches.')).toBeTruthy();
  });

  it('tells ended sessions that do not match from none', async () => {
    const { model } = await panel({
      sessions: jest.fn().mockImplementation(async () => ({
        sessions: [session(1, 'ended')],
        revision: 1
      }))
    });
    await act(async () => {
      model.showEnded = true;
      await model.refresh();
    });
    fireEvent.change(screen.getByRole('searchbox'), { target: { value: 'xyz' } });
    expect(screen.getByText('No ended session matches.')).toBeTruthy();
  });

  it('asks for the ended sessions when their group is opened', async () => {
    const { api } = await panel({
      sessions: jest.fn().mockImplementation(async (state: string) => ({
        sessions: state === 'all' ? [session(1, 'ended')] : [],
        revision: 1
      }))
    });
    const group = screen.getByRole('button', { name: 'Ended' });
    expect(group.getAttribute('aria-expanded')).toBe('false');
    fireEvent.click(group);
    await act(settle);
    expect(api.sessions).toHaveBeenLastCalledWith('all', false);
    expect(screen.getByRole('article').dataset.phase).toBe('ended');
  });

  it('tells an unreachable server, and asks again on request', async () => {
    const { api } = await panel({
      status: jest
        .fn()
        .mockRejectedValueOnce(
          new SessionError(
            { code: 'x', message: 'ClearML is away', hint: 'Wait.' },
            503
          )
        )
        .mockResolvedValue(SERVER)
    });
    expect(screen.getByRole('alert').textContent).toContain('ClearML is away');
    fireEvent.click(screen.getByRole('button', { name: 'Try Again' }));
    await act(settle);
    expect(api.status).toHaveBeenCalledTimes(2);
    expect(screen.queryByRole('alert')).toBeNull();
  });
});

describe('the announcer', () => {
  it('says a change of phase, once and outside of the panel', async () => {
    const { model } = await panel({
      sessions: jest
        .fn()
        .mockResolvedValue({ sessions: [session(1, 'starting')], revision: 1 })
    });
    const node = announcer(model, trans);
    model.put(session(2, 'queued'));
    expect(node.textContent).toBe('');
    model.put(session(1, 'ready'));
    expect(node.textContent).toBe('session 1: Ready');
    expect(node.getAttribute('aria-live')).toBe('polite');
    expect(document.querySelector('[aria-live]')).toBeNull();
  });

  it('says all changes of one moment', async () => {
    const { model } = await panel({
      sessions: jest.fn().mockResolvedValue({
        sessions: [session(1, 'starting'), session(2, 'starting')],
        revision: 1
      })
    });
    const node = announcer(model, trans);
    model.put(session(1, 'ready'));
    model.put(session(2, 'failed'));
    expect(node.textContent).toBe('session 1: Ready, session 2: Failed');
    await settle();
    model.put(session(1, 'reconnecting'));
    expect(node.textContent).toBe('session 1: Reconnecting');
  });
});

describe('the doors', () => {
  const unconfigured = {
    ...SERVER,
    mode: 'unconfigured',
    api_server: null,
    user: null
  };

  it('send what was pasted', async () => {
    const configure = jest.fn().mockResolvedValue(SERVER);
    const { api } = await panel({
      status: jest.fn().mockResolvedValueOnce(unconfigured).mockResolvedValue(SERVER),
      configure
    });
    fireEvent.change(screen.getByPlaceholderText(/api \{/), {
      target: {
        value:
          'api { api_server: http://a\n web_server: http://w\n files_server: http://f\n' +
          'credentials { "access_key" = "K"\n "secret_key" = "S" } }'
      }
    });
    expect(screen.getByText('5 values found')).toBeTruthy();
    fireEvent.click(screen.getByRole('button', { name: 'Connect' }));
    await act(settle);
    expect(api.configure.mock.calls[0][0]).toEqual({
      api_server: 'http://a',
      web_server: 'http://w',
      files_server: 'http://f',
      access_key: 'K',
      secret_key: 'S'
    });
    expect(screen.queryByText('Connect to a ClearML server')).toBeNull();
  });

  it('put a complaint to its field and keep what was typed', async () => {
    await panel({
      status: jest.fn().mockResolvedValue(unconfigured),
      configure: jest.fn().mockRejectedValue(
        new SessionError(
          {
            code: 'invalid_input',
            message: 'Not an address',
            detail: { field: 'api_server' }
          },
          400
        )
      )
    });
    const server = screen.getByLabelText('API server');
    fireEvent.change(server, { target: { value: 'nonsense' } });
    fireEvent.submit(server);
    await act(settle);
    expect(server.getAttribute('aria-invalid')).toBe('true');
    expect((server as HTMLInputElement).value).toBe('nonsense');
    expect(screen.getByRole('alert').textContent).toContain('Not an address');
  });

  it('start the embedded default, or say why not', async () => {
    const { api } = await panel({
      status: jest.fn().mockResolvedValue(unconfigured),
      configure: jest
        .fn()
        .mockRejectedValue(
          new SessionError(
            { code: 'local_mode_failed', message: 'No agent installed' },
            424
          )
        )
    });
    fireEvent.click(screen.getByRole('button', { name: 'Try It on This Machine' }));
    await act(settle);
    expect(api.configure.mock.calls[0][0]).toEqual({ mode: 'local' });
    expect(screen.getByRole('alert').textContent).toContain('No agent installed');
  });
});

describe('LaunchForm', () => {
  async function form(calls: Partial<FakeAPI> = {}) {
    const draft = new LaunchDraft(
      fakeAPI({
        queues: jest
          .fn()
          .mockResolvedValue([
            { id: 'q1', name: 'gpu', tags: [], length: 2, workers: [] }
          ]),
        ...calls
      }),
      trans
    );
    await draft.load();
    const show = () => <LaunchForm draft={draft} trans={trans} />;
    const { rerender } = render(show());
    draft.changed.connect(() => act(() => rerender(show())));
    return draft;
  }

  it('is drawn from the schema, by groups, with labels for every control', async () => {
    const draft = await form();
    expect(screen.getByLabelText('Queue').tagName).toBe('SELECT');
    expect(screen.getByLabelText('Packages').tagName).toBe('TEXTAREA');
    expect((screen.getByLabelText('JupyterLab') as HTMLInputElement).checked).toBe(
      true
    );
    expect((screen.getByLabelText('Password') as HTMLInputElement).type).toBe(
      'password'
    );
    expect((screen.getByLabelText('Idle') as HTMLInputElement).type).toBe('number');
    expect(screen.getByText('gpu — no agent, 2 waiting')).toBeTruthy();
    expect(draft.spec()).toEqual({});
  });

  it('takes what is typed', async () => {
    const draft = await form();
    fireEvent.change(screen.getByLabelText('Queue'), { target: { value: 'gpu' } });
    fireEvent.change(screen.getByLabelText('Packages'), { target: { value: 'a\nb' } });
    fireEvent.click(screen.getByLabelText('JupyterLab'));
    fireEvent.change(screen.getByLabelText('Variables'), { target: { value: 'A=1' } });
    fireEvent.change(screen.getByLabelText('Idle'), { target: { value: '30' } });
    expect(draft.spec()).toEqual({
      queue: 'gpu',
      packages: ['a', 'b'],
      jupyter_lab: false,
      env: { A: '1' },
      idle_timeout_min: 30
    });
  });

  it('does not say a number that was emptied again', async () => {
    const draft = await form();
    const idle = screen.getByLabelText('Idle') as HTMLInputElement;
    fireEvent.change(idle, { target: { value: '30' } });
    fireEvent.change(idle, { target: { value: '' } });
    expect(idle.value).toBe('');
    expect(draft.spec()).toEqual({});
  });

  it('asks for options and queues again on request, also where some are known', async () => {
    const queues = jest.fn().mockResolvedValue([]);
    const draft = await form({ queues });
    queues.mockRejectedValueOnce(new Error('away'));
    await act(() => draft.load());
    expect(screen.getByRole('alert').textContent).toContain('away');
    fireEvent.click(screen.getByRole('button', { name: 'Try Again' }));
    await act(settle);
    expect(queues).toHaveBeenCalledTimes(3);
    expect(screen.queryByRole('alert')).toBeNull();
  });

  it('looks at the repository again on request where it could not be seen', async () => {
    const repository = jest.fn().mockRejectedValue(new Error('away'));
    const draft = await form({ repository });
    await act(() => draft.load({ folder: 'x' }));
    expect(screen.getByRole('alert').textContent).toBe('away');
    fireEvent.click(screen.getByRole('button', { name: 'Look Again' }));
    await act(settle);
    expect(repository).toHaveBeenCalledTimes(2);
  });

  it('shows what is wrong where it is wrong, and opens its group', async () => {
    const draft = await form();
    act(() => draft.set({ debugging_session: 'xyz' }));
    await act(async () => {
      await draft.launch();
    });
    const field = screen.getByLabelText('Debug a Task');
    expect(field.getAttribute('aria-invalid')).toBe('true');
    expect(field.closest('details')?.open).toBe(true);
    expect(screen.getByRole('alert').textContent).toContain('Not an id');
  });

  it('opens a group again in which something is wrong still', async () => {
    const draft = await form();
    act(() => draft.set({ debugging_session: 'xyz' }));
    const launch = () => act(async () => void (await draft.launch()));
    await launch();
    const group = screen.getByLabelText('Debug a Task').closest('details');
    expect(group?.open).toBe(true);
    act(() => {
      group?.removeAttribute('open');
      group?.dispatchEvent(new Event('toggle'));
    });
    expect(group?.open).toBe(false);
    await launch();
    expect(group?.open).toBe(true);
    expect(document.activeElement).toBe(screen.getByLabelText('Debug a Task'));
  });
});

describe('the log', () => {
  it('says that nothing was written', () => {
    render(
      <Log
        lines={[]}
        error=""
        loading={false}
        canGoBack
        trans={trans}
        onEarlier={jest.fn()}
      />
    );
    expect(screen.getByText('Nothing was written yet.')).toBeTruthy();
  });
});

describe('the status bar', () => {
  it.each([
    [[], ''],
    [[session(1, 'ready'), session(2, 'ready')], 'ClearML: 2 ready'],
    [[session(1, 'ready'), session(2, 'starting')], 'ClearML: 1 ready, starting'],
    [[session(1, 'reconnecting'), session(2, 'queued')], 'ClearML: reconnecting']
  ])('%#', async (sessions, text) => {
    const model = await startedModel(
      fakeAPI({ sessions: jest.fn().mockResolvedValue({ sessions, revision: 1 }) })
    );
    expect(statusText(model, trans)).toBe(text);
  });
});
