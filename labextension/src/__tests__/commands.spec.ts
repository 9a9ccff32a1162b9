import { Dialog, Notification } from '@jupyterlab/apputils';
import type { JupyterFrontEnd } from '@jupyterlab/application';
import { CommandRegistry } from '@lumino/commands';
import { PromiseDelegate } from '@lumino/coreutils';

import { CommandIDs, GLOBAL_COMMANDS, SESSION_COMMANDS } from '../commandIds';
import { addCommands } from '../commands';
import type { Launcher } from '../launchDialog';
import type { SessionModel } from '../model';
import { Progress } from '../progress';
import { SessionError } from '../request';
import type { ISession } from '../tokens';
import type { Views } from '../views';
import type { FakeAPI } from './parts';
import {
  Events,
  SERVER,
  fakeAPI,
  id,
  session,
  settle,
  startedModel,
  trans
} from './parts';

interface IStage {
  commands: CommandRegistry;
  model: SessionModel;
  api: FakeAPI;
  events: Events;
  views: { [K in keyof Views]: jest.Mock };
  launcher: { launch: jest.Mock };
  showPanel: jest.Mock;
}

async function stage(
  sessions: ISession[],
  calls: Partial<FakeAPI> = {},
  confirmShutdown = false
): Promise<IStage> {
  const api = fakeAPI({
    sessions: jest.fn().mockResolvedValue({ sessions, revision: 1 }),
    ...calls
  });
  const events = new Events();
  const model = await startedModel(api, events);
  const commands = new CommandRegistry();
  const views = {
    openPage: jest.fn(),
    openInBrowser: jest.fn(),
    openPort: jest.fn(),
    openTerminal: jest.fn().mockResolvedValue(undefined),
    openFiles: jest.fn().mockResolvedValue(undefined),
    openLog: jest.fn(),
    restore: jest.fn()
  };
  const launcher = { launch: jest.fn().mockResolvedValue(null) };
  const showPanel = jest.fn();
  addCommands({
    app: { commands } as unknown as JupyterFrontEnd,
    model,
    views: views as unknown as Views,
    launcher: launcher as unknown as Launcher,
    progress: new Progress(model, commands, trans),
    trans,
    showPanel,
    confirmShutdown: () => confirmShutdown,
    shownFolder: () => 'shown',
    chosenFolder: () => 'chosen'
  });
  return { commands, model, api, events, views, launcher, showPanel };
}

function messages(): string[] {
  return Notification.manager.notifications.map(({ message }) => message);
}

/** Press a button of the open dialog. */
async function press(label: string): Promise<void> {
  await settle();
  const buttons = [
    ...document.querySelectorAll<HTMLButtonElement>('.jp-Dialog button')
  ];
  const button = buttons.find(found => found.textContent?.trim() === label);
  if (!button) {
    throw new Error(`no button ${label}: ${document.body.textContent}`);
  }
  button.click();
  await settle();
}

afterEach(() => {
  Notification.manager.dismiss();
  Dialog.flush();
});

describe('commands', () => {
  it('are all there, with a label, and listed once', async () => {
    const { commands } = await stage([]);
    for (const command of Object.values(CommandIDs)) {
      expect(commands.hasCommand(command)).toBe(true);
      expect(commands.label(command)).not.toBe('');
    }
    const listed: string[] = [...GLOBAL_COMMANDS, ...SESSION_COMMANDS];
    expect(new Set(listed).size).toBe(listed.length);
  });

  it('show the panel in place of the dialog where ClearML is not configured', async () => {
    const { commands, launcher, showPanel } = await stage([], {
      status: jest.fn().mockResolvedValue({ ...SERVER, mode: 'unconfigured' })
    });
    await commands.execute(CommandIDs.newSession);
    expect(showPanel).toHaveBeenCalled();
    expect(launcher.launch).not.toHaveBeenCalled();
    expect(commands.isEnabled(CommandIDs.attachById)).toBe(false);
  });

  it('lead to a ClearML server from this machine alone', async () => {
    const { commands } = await stage([]);
    expect(commands.isVisible(CommandIDs.connectServer)).toBe(false);
    expect(commands.isEnabled(CommandIDs.connectServer)).toBe(false);
    const local = { ...SERVER, mode: 'local' };
    const here = await stage([], { status: jest.fn().mockResolvedValue(local) });
    expect(here.commands.isVisible(CommandIDs.connectServer)).toBe(true);
    void here.commands.execute(CommandIDs.connectServer);
    await press('Close');
  });

  it('launch, show the session at once and follow it to the end', async () => {
    const { commands, model, events, launcher } = await stage([]);
    launcher.launch.mockResolvedValue(session(1, 'queued'));
    await commands.execute(CommandIDs.newSession);
    expect(model.get(id(1))?.phase).toBe('queued');
    expect(messages()).toEqual(['session 1: text of queued']);
    events.changed(2, session(1, 'starting'));
    expect(messages()).toEqual(['session 1: text of starting']);
    events.changed(3, session(1, 'ready'));
    expect(messages()).toEqual(['session 1 is ready']);
  });

  it.each([
    ['JupyterLab', { jupyter: 'p/' }, 'Open JupyterLab'],
    ['no JupyterLab', {}, 'Show']
  ])(
    'offer of a followed session with %s what there is',
    async (_, endpoints, label) => {
      const { commands, events, launcher, views, showPanel } = await stage([]);
      launcher.launch.mockResolvedValue(session(1, 'queued'));
      await commands.execute(CommandIDs.newSession);
      showPanel.mockClear();
      events.changed(2, session(1, 'ready', { endpoints }));
      const [open] = Notification.manager.notifications[0].options.actions ?? [];
      expect(open.label).toBe(label);
      open.callback({} as MouseEvent);
      await settle();
      expect(showPanel).toHaveBeenCalledTimes(label === 'Show' ? 1 : 0);
      expect(views.openPage).toHaveBeenCalledTimes(label === 'Show' ? 0 : 1);
    }
  );

  it('tell that a followed session failed', async () => {
    const { commands, events, launcher } = await stage([]);
    launcher.launch.mockResolvedValue(session(1, 'queued'));
    await commands.execute(CommandIDs.newSession);
    const error = { code: 'session_failed', message: 'no such package' };
    events.changed(2, session(1, 'failed', { error }));
    expect(messages()).toEqual(['session 1: no such package']);
  });

  it('are offered by what the session can do', async () => {
    const { commands } = await stage([session(1, 'ready'), session(2, 'queued')]);
    expect(commands.isVisible(CommandIDs.openJupyter, { id: id(1) })).toBe(true);
    expect(commands.isVisible(CommandIDs.openJupyter, { id: id(2) })).toBe(false);
    expect(commands.isEnabled(CommandIDs.openJupyter)).toBe(true);
    expect(commands.isEnabled(CommandIDs.attach)).toBe(false);
  });

  it('take the only session that fits', async () => {
    const { commands, views } = await stage([
      session(1, 'ready'),
      session(2, 'queued')
    ]);
    await commands.execute(CommandIDs.openTerminal);
    expect(views.openTerminal.mock.calls[0][0].id).toBe(id(1));
  });

  it('open pages here and in the browser', async () => {
    const { commands, views } = await stage([session(1, 'ready')]);
    await commands.execute(CommandIDs.openJupyter, { id: id(1) });
    await commands.execute(CommandIDs.openVscodeBrowser, { id: id(1) });
    expect(views.openPage).toHaveBeenCalledWith(expect.anything(), 'jupyter');
    expect(views.openInBrowser).toHaveBeenCalledWith(expect.anything(), 'vscode');
  });

  it('attach on the way to JupyterLab, and wait until it is ready', async () => {
    const running = session(1, 'services_up', { endpoints: { jupyter: 'p/' } });
    const { commands, views, events } = await stage([running], {
      attach: jest.fn().mockResolvedValue({ ...running, phase: 'connecting' })
    });
    const opened = commands.execute(CommandIDs.openJupyter, { id: id(1) });
    await settle();
    expect(views.openPage).not.toHaveBeenCalled();
    events.changed(2, session(1, 'ready'));
    await opened;
    expect(views.openPage).toHaveBeenCalledTimes(1);
  });

  describe('where the user gives the session up while it connects', () => {
    const running = session(1, 'services_up', { endpoints: { jupyter: 'p/' } });

    it.each([
      ['detached', running],
      ['shut down', session(1, 'stopping')]
    ])(
      'open nothing of one that was %s, not even later, and tell no failure',
      async (_, left) => {
        const { commands, views, events } = await stage([running], {
          attach: jest.fn().mockResolvedValue({ ...running, phase: 'connecting' })
        });
        const opened = commands.execute(CommandIDs.openJupyter, { id: id(1) });
        await settle();
        events.changed(2, left);
        await opened;
        events.changed(3, session(1, 'connecting'));
        events.changed(4, session(1, 'ready'));
        await settle();
        expect(views.openPage).not.toHaveBeenCalled();
        expect(messages()).toEqual([]);
      }
    );

    it('follow the session no longer', async () => {
      const { commands, events } = await stage([], {
        attach: jest.fn().mockResolvedValue(session(1, 'connecting'))
      });
      await commands.execute(CommandIDs.attachById, { id: id(1) });
      expect(messages()).toEqual(['session 1: text of connecting']);
      events.changed(2, running);
      expect(messages()).toEqual([]);
    });
  });

  it('open a browser tab in a click of its own where the session had to be waited for', async () => {
    const running = session(1, 'services_up', { endpoints: { jupyter: 'p/' } });
    const { commands, views, events } = await stage([running], {
      attach: jest.fn().mockResolvedValue({ ...running, phase: 'connecting' })
    });
    const waited = commands.execute(CommandIDs.openJupyterBrowser, { id: id(1) });
    await settle();
    const ready = session(1, 'ready');
    events.changed(2, ready);
    await waited;
    expect(views.openInBrowser).not.toHaveBeenCalled();
    expect(messages()).toEqual(['session 1 is ready']);
    const [open] = Notification.manager.notifications[0].options.actions ?? [];
    expect(open.label).toBe('Open');
    open.callback({} as MouseEvent);
    expect(views.openInBrowser).toHaveBeenCalledWith(ready, 'jupyter');
  });

  it('store a workspace and end when it is stored', async () => {
    const stored = new PromiseDelegate<void>();
    const { commands } = await stage(
      [session(1, 'ready', { spec: { store_workspace: '~/work' } })],
      { storeWorkspace: jest.fn().mockReturnValue(stored.promise) }
    );
    const ended = jest.fn();
    const done = commands.execute(CommandIDs.storeWorkspace, { id: id(1) }).then(ended);
    await settle();
    expect(messages()).toEqual(['Storing the workspace of session 1']);
    expect(ended).not.toHaveBeenCalled();
    stored.resolve();
    await done;
    expect(messages()).toEqual(['Workspace of session 1 stored']);
  });

  it('tell once why a workspace was not stored', async () => {
    const { commands } = await stage(
      [session(1, 'ready', { spec: { store_workspace: '~/work' } })],
      {
        storeWorkspace: jest
          .fn()
          .mockRejectedValue(
            new SessionError({ code: 'x', message: 'No space', hint: 'Tidy up' }, 424)
          )
      }
    );
    await commands.execute(CommandIDs.storeWorkspace, { id: id(1) });
    await settle();
    expect(messages()).toEqual(['No space. Tidy up']);
  });

  it.each([
    ['was stored', (stored: PromiseDelegate<void>) => stored.resolve()],
    ['could not be', (stored: PromiseDelegate<void>) => stored.reject(new Error('no'))]
  ])('store a workspace once at a time, and again after it %s', async (_, end) => {
    const spec = { store_workspace: '~/work' };
    const stored = new PromiseDelegate<void>();
    const { commands, api } = await stage(
      [session(1, 'ready', { spec }), session(2, 'ready', { spec })],
      { storeWorkspace: jest.fn().mockReturnValue(stored.promise) }
    );
    const [first, second] = [{ id: id(1) }, { id: id(2) }];
    const isEnabled = (args: { id: string }) =>
      commands.isEnabled(CommandIDs.storeWorkspace, args);
    const changed: Array<string | undefined> = [];
    commands.commandChanged.connect((__, change) => changed.push(change.id));

    const done = commands.execute(CommandIDs.storeWorkspace, first);
    expect(changed).toEqual([CommandIDs.storeWorkspace]);
    expect(isEnabled(first)).toBe(false);
    expect(commands.isVisible(CommandIDs.storeWorkspace, first)).toBe(true);
    expect(isEnabled(second)).toBe(true);
    await commands.execute(CommandIDs.storeWorkspace, first);
    expect(api.storeWorkspace).toHaveBeenCalledTimes(1);

    end(stored);
    await done;
    expect(changed).toHaveLength(2);
    expect(isEnabled(first)).toBe(true);
  });

  it('tell the buttons of this extension alone that they may look different', async () => {
    const { commands, events } = await stage([]);
    const changed = new Set<string | undefined>();
    commands.commandChanged.connect((_, change) => changed.add(change.id));
    events.changed(2, session(1, 'queued'));
    expect([...changed].sort()).toEqual(Object.values<string>(CommandIDs).sort());
  });

  it("warn before somebody else's pages run under our origin", async () => {
    const others = session(1, 'ready', {
      mine: false,
      user: { id: 'u2', name: 'grace' }
    });
    const { commands, views } = await stage([others]);
    const refused = commands.execute(CommandIDs.openJupyter, { id: id(1) });
    await press('Cancel');
    await refused;
    expect(views.openPage).not.toHaveBeenCalled();
    const accepted = commands.execute(CommandIDs.openJupyter, { id: id(1) });
    await press('Open Anyway');
    await accepted;
    expect(views.openPage).toHaveBeenCalledTimes(1);
  });

  it('shut down only what the user has confirmed', async () => {
    const { commands, api, model } = await stage(
      [session(1, 'ready')],
      { shutdown: jest.fn().mockResolvedValue(session(1, 'stopping')) },
      true
    );
    const refused = commands.execute(CommandIDs.shutdown, { id: id(1) });
    await press('Cancel');
    await refused;
    expect(api.shutdown).not.toHaveBeenCalled();
    const accepted = commands.execute(CommandIDs.shutdown, { id: id(1) });
    await press('Shut Down');
    await accepted;
    expect(api.shutdown).toHaveBeenCalledWith(id(1));
    expect(model.get(id(1))?.phase).toBe('stopping');
  });

  it('dismiss a failed session once', async () => {
    const { commands, events, model } = await stage([session(1, 'starting')]);
    const isVisible = () => commands.isVisible(CommandIDs.dismiss, { id: id(1) });
    events.changed(2, session(1, 'failed'));
    expect(isVisible()).toBe(true);
    await commands.execute(CommandIDs.dismiss, { id: id(1) });
    expect(model.active).toEqual([]);
    expect(model.get(id(1))?.phase).toBe('failed');
    expect(isVisible()).toBe(false);
    expect(commands.isEnabled(CommandIDs.dismiss)).toBe(false);
  });

  it('tell a failure with its hint in place of throwing it', async () => {
    const { commands } = await stage([session(1, 'ready')], {
      detach: jest
        .fn()
        .mockRejectedValue(
          new SessionError(
            { code: 'wrong_phase', message: 'Not now', hint: 'Wait' },
            409
          )
        )
    });
    await expect(
      commands.execute(CommandIDs.detach, { id: id(1) })
    ).resolves.toBeNull();
    expect(messages()).toEqual(['Not now. Wait']);
  });

  it('attach by an id that was never seen here', async () => {
    const others = session(5, 'connecting', { mine: false });
    const { commands, api, model } = await stage([], {
      attach: jest.fn().mockResolvedValue(others)
    });
    await commands.execute(CommandIDs.attachById, { id: id(5) });
    expect(api.attach).toHaveBeenCalledWith(id(5));
    expect(model.active.map(found => found.id)).toEqual([id(5)]);
  });

  it('begin a debugging session with the Task filled in', async () => {
    const { commands, launcher } = await stage([]);
    await commands.execute(CommandIDs.debugTask, { id: id(7) });
    expect(launcher.launch).toHaveBeenCalledWith({
      spec: { debugging_session: id(7) }
    });
  });

  it('offer the repository of the folder in sight, and take that of the chosen one', async () => {
    const { commands, launcher } = await stage([]);
    await commands.execute(CommandIDs.newSession);
    await commands.execute(CommandIDs.newWithRepository);
    expect(launcher.launch.mock.calls).toEqual([
      [{ folder: 'shown' }],
      [{ folder: 'chosen', withRepository: true }]
    ]);
  });

  it('launch an ended session again with all of its options', async () => {
    const spec = { queue: 'gpu', init_script: 'long' };
    const failed = session(1, 'failed', { status: 'in_progress' });
    const { commands, launcher } = await stage([failed], {
      spec: jest.fn().mockResolvedValue(spec)
    });
    expect(commands.isVisible(CommandIDs.again, { id: id(1) })).toBe(false);
    const over = await stage([session(1, 'failed')], {
      spec: jest.fn().mockResolvedValue(spec)
    });
    await over.commands.execute(CommandIDs.again, { id: id(1) });
    expect(launcher.launch).not.toHaveBeenCalled();
    expect(over.launcher.launch).toHaveBeenCalledWith({
      again: { name: 'session 1', spec },
      folder: 'shown'
    });
  });

  it.each([
    [{}, { continue_session: id(1) }],
    [
      { debugging_session: id(7), base_task_id: '' },
      { debugging_session: '', base_task_id: id(1) }
    ],
    [
      { debugging_session: '', base_task_id: id(7) },
      { debugging_session: '', base_task_id: id(1) }
    ]
  ])(
    'continue a session launched with %j from its own Task',
    async (source, expected) => {
      const stored = { store_workspace: '~/work' };
      const { commands, launcher } = await stage(
        [session(1, 'ended', { spec: stored })],
        {
          spec: jest.fn().mockResolvedValue({ ...stored, ...source })
        }
      );
      await commands.execute(CommandIDs.continueSession, { id: id(1) });
      expect(launcher.launch).toHaveBeenCalledWith({
        again: { name: 'session 1', spec: { ...stored, ...expected } },
        folder: 'shown'
      });
    }
  );

  it('import presets, and tell what was not understood', async () => {
    const { commands } = await stage([], {
      importPresets: jest.fn().mockResolvedValue({ presets: {}, refused: ['old'] })
    });
    await commands.execute(CommandIDs.importPresets);
    expect(messages()).toEqual([
      'Imported as preset “clearml-session”; its password was not. Not understood: old.'
    ]);
  });

  it('delete the other chosen sessions where one is gone already', async () => {
    const gone = { code: 'unknown_session', message: 'There is no such session' };
    const { commands, api } = await stage([], {
      purge: jest.fn(async (purged: string) => {
        if (purged === id(1)) {
          throw new SessionError(gone, 404);
        }
      }),
      sessions: jest.fn().mockImplementation(async (state: string) => ({
        sessions: state === 'ended' ? [session(1, 'ended'), session(2, 'ended')] : [],
        revision: 1
      }))
    });
    const done = commands.execute(CommandIDs.cleanUp);
    await press('Delete Chosen');
    await done;
    expect(api.purge.mock.calls).toEqual([[id(1)], [id(2)]]);
    expect(messages()).toEqual(['1 session deleted']);
  });

  it('delete nothing but the chosen ended sessions', async () => {
    const ended = [
      session(1, 'ended'),
      session(2, 'ended'),
      session(3, 'ended', { mine: false }),
      session(4, 'ended', { spec: { store_workspace: '~/work' } })
    ];
    const { commands, api } = await stage([], {
      purge: jest.fn().mockResolvedValue(null),
      sessions: jest.fn().mockImplementation(async (state: string) => ({
        sessions: state === 'ended' ? ended : [],
        revision: 1
      }))
    });
    const done = commands.execute(CommandIDs.cleanUp);
    await settle();
    const boxes = document.querySelectorAll<HTMLInputElement>(
      '.jp-ClearML-choices input'
    );
    expect([...boxes].map(box => box.checked)).toEqual([true, true, false]);
    boxes[0].click();
    await press('Delete Chosen');
    await done;
    expect(api.sessions).toHaveBeenLastCalledWith('ended', false, false);
    expect(api.purge.mock.calls).toEqual([[id(2)]]);
    expect(messages()).toEqual(['1 session deleted']);
  });
});
