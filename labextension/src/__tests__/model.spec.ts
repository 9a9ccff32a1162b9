import { PromiseDelegate } from '@lumino/coreutils';

import { SessionModel } from '../model';
import { SessionError } from '../request';
import type { IPhaseChange, ISession } from '../tokens';
import type { FakeAPI } from './parts';
import { Events, SERVER, fakeAPI, id, session, settle, startedModel } from './parts';

const GONE = new SessionError({ code: 'unknown_session', message: 'gone' }, 404);

describe('SessionModel', () => {
  let model: SessionModel;
  let events: Events;

  beforeEach(() => {
    events = new Events();
  });

  afterEach(() => {
    model.dispose();
  });

  it('begins with a snapshot, newest first', async () => {
    const api = fakeAPI({
      sessions: jest.fn().mockResolvedValue({
        sessions: [session(1, 'ready'), session(2, 'queued')],
        revision: 7
      })
    });
    model = new SessionModel({ api, events: events.stream });
    expect(model.loading).toBe(true);
    model.start();
    await model.ready;
    await settle();
    expect(model.loading).toBe(false);
    expect(model.status).toEqual(SERVER);
    expect(model.active.map(found => found.id)).toEqual([id(2), id(1)]);
    expect(api.sessions).toHaveBeenCalledWith('active', false);
  });

  it('applies the next event without asking again', async () => {
    const api = fakeAPI({
      sessions: jest
        .fn()
        .mockResolvedValue({ sessions: [session(1, 'queued')], revision: 7 })
    });
    model = await startedModel(api, events);
    const changes: IPhaseChange[] = [];
    model.phaseChanged.connect((_, change) => {
      changes.push(change);
    });
    events.changed(8, session(1, 'starting'));
    events.changed(9, session(1, 'ready'));
    expect(model.get(id(1))?.phase).toBe('ready');
    expect(changes.map(({ before, session: { phase } }) => [before, phase])).toEqual([
      ['queued', 'starting'],
      ['starting', 'ready']
    ]);
    await settle();
    expect(api.sessions).toHaveBeenCalledTimes(1);
  });

  it('takes a new snapshot after a gap', async () => {
    const api = fakeAPI({
      sessions: jest
        .fn()
        .mockResolvedValueOnce({ sessions: [session(1, 'queued')], revision: 7 })
        .mockResolvedValue({ sessions: [session(1, 'ready')], revision: 10 })
    });
    model = await startedModel(api, events);
    events.changed(10, session(1, 'connecting'));
    expect(model.get(id(1))?.phase).toBe('queued');
    await settle();
    expect(api.sessions).toHaveBeenCalledTimes(2);
    expect(model.get(id(1))?.phase).toBe('ready');
  });

  it('takes one snapshot for many gaps in one moment', async () => {
    const api = fakeAPI({
      sessions: jest.fn().mockResolvedValue({ sessions: [], revision: 20 })
    });
    model = await startedModel(api, events);
    for (let revision = 30; revision < 40; revision += 2) {
      events.changed(revision, session(1, 'queued'));
    }
    await settle();
    expect(api.sessions).toHaveBeenCalledTimes(2);
  });

  it('ignores late events that the snapshot holds already', async () => {
    const api = fakeAPI({
      sessions: jest
        .fn()
        .mockResolvedValue({ sessions: [session(1, 'ready')], revision: 7 })
    });
    model = await startedModel(api, events);
    events.changed(6, session(1, 'queued'));
    events.changed(7, session(1, 'starting'));
    await settle();
    expect(model.get(id(1))?.phase).toBe('ready');
    expect(api.sessions).toHaveBeenCalledTimes(1);
  });

  it('takes a new snapshot when a restarted server counts anew', async () => {
    const api = fakeAPI({
      sessions: jest
        .fn()
        .mockResolvedValueOnce({ sessions: [session(1, 'ready')], revision: 50 })
        .mockResolvedValue({ sessions: [session(1, 'connecting')], revision: 3 })
    });
    model = await startedModel(api, events);
    const now = jest.spyOn(Date, 'now').mockReturnValue(Date.now() + 60_000);
    events.changed(3, session(1, 'connecting'));
    now.mockRestore();
    await settle();
    expect(api.sessions).toHaveBeenCalledTimes(2);
    events.changed(4, session(1, 'ready'));
    expect(model.get(id(1))?.phase).toBe('ready');
  });

  it('applies events that came while the snapshot was on its way', async () => {
    let answer: (value: unknown) => void = () => undefined;
    const api = fakeAPI({
      sessions: jest.fn().mockReturnValueOnce(
        new Promise(resolve => {
          answer = resolve;
        })
      )
    });
    model = new SessionModel({ api, events: events.stream });
    model.start();
    await settle();
    events.changed(5, session(1, 'queued')); // in the snapshot already
    events.changed(6, session(1, 'starting'));
    answer({ sessions: [session(1, 'queued')], revision: 5 });
    await model.ready;
    await settle();
    expect(model.get(id(1))?.phase).toBe('starting');
    expect(api.sessions).toHaveBeenCalledTimes(1);
  });

  it('does not listen to other events', async () => {
    model = await startedModel(fakeAPI(), events);
    events.emit(
      { revision: 1, kind: 'changed', session: session(1, 'ready') },
      'https://other'
    );
    expect(model.active).toEqual([]);
  });

  it('takes a new line of the log as any other change', async () => {
    model = await startedModel(fakeAPI(), events);
    const progress = {
      step: 3,
      steps: 5,
      text: 'Starting',
      last_line: 'Collecting numpy'
    };
    events.emit({
      revision: 1,
      kind: 'log',
      session: session(1, 'starting', { progress })
    });
    expect(model.get(id(1))?.progress?.last_line).toBe('Collecting numpy');
  });

  it('removes what was deleted', async () => {
    const api = fakeAPI({
      sessions: jest
        .fn()
        .mockResolvedValue({ sessions: [session(1, 'queued')], revision: 1 })
    });
    model = await startedModel(api, events);
    events.emit({ revision: 2, kind: 'removed', session: session(1, 'ended') });
    expect(model.get(id(1))).toBeUndefined();
  });

  it('keeps a failure in sight until it is dismissed, also over a snapshot', async () => {
    const api = fakeAPI({
      sessions: jest
        .fn()
        .mockResolvedValueOnce({ sessions: [session(1, 'starting')], revision: 1 })
        .mockResolvedValue({ sessions: [], revision: 2 })
    });
    model = await startedModel(api, events);
    events.changed(2, session(1, 'failed'));
    await model.refresh();
    expect(model.active.map(found => found.phase)).toEqual(['failed']);
    model.dismiss(id(1));
    expect(model.active).toEqual([]);
  });

  it('shows a failed connection of a running session as active', async () => {
    const broken = session(1, 'failed', { status: 'in_progress' });
    const api = fakeAPI({
      sessions: jest.fn().mockResolvedValue({ sessions: [broken], revision: 1 })
    });
    model = await startedModel(api, events);
    expect(model.active).toEqual([broken]);
  });

  it("shows other people's sessions only when asked, or attached", async () => {
    const others = session(1, 'queued', { mine: false });
    const attached = session(2, 'ready', { mine: false });
    const api = fakeAPI({
      sessions: jest
        .fn()
        .mockResolvedValue({ sessions: [others, attached], revision: 1 })
    });
    model = await startedModel(api, events);
    expect(model.active).toEqual([attached]);
    model.allUsers = true;
    await settle();
    expect(api.sessions).toHaveBeenLastCalledWith('active', true);
    expect(model.active).toEqual([attached, others]);
  });

  it("keeps another person's session that was asked for by id", async () => {
    const others = session(1, 'starting', { mine: false });
    const api = fakeAPI({
      session: jest.fn().mockResolvedValue({ ...others, phase: 'connecting' })
    });
    model = await startedModel(api, events);
    model.put(others);
    expect(model.active).toEqual([others]);
    await model.refresh();
    expect(model.active.map(found => found.phase)).toEqual(['connecting']);
  });

  describe('where a session is over that was not, and no event has told', () => {
    async function over(calls: Partial<FakeAPI>, first: Partial<ISession> = {}) {
      const shown = [session(1, 'ready', first)];
      const sessions = jest.fn(async () => ({ sessions: [...shown], revision: 0 }));
      const api = fakeAPI({ sessions, ...calls });
      model = await startedModel(api, events);
      const changes: Array<[string | null, string]> = [];
      model.phaseChanged.connect((_, { before, session: { phase } }) => {
        changes.push([before, phase]);
      });
      shown.pop();
      await model.refresh();
      await model.refresh();
      return { api, changes };
    }

    it('asks once how it has ended', async () => {
      const { api, changes } = await over({
        session: jest.fn().mockResolvedValue(session(1, 'ended'))
      });
      expect(api.session.mock.calls).toEqual([[id(1)]]);
      expect(changes).toEqual([['ready', 'ended']]);
      expect(model.active).toEqual([]);
    });

    it('keeps one that has failed in sight', async () => {
      await over({ session: jest.fn().mockResolvedValue(session(1, 'failed')) });
      expect(model.active.map(found => found.phase)).toEqual(['failed']);
    });

    it('tells the end also of one that could not be connected to', async () => {
      const ended = session(1, 'ended');
      const { changes } = await over(
        { session: jest.fn().mockResolvedValue(ended) },
        { phase: 'failed' }
      );
      expect(changes).toEqual([['failed', 'ended']]);
    });

    it('forgets one that is gone', async () => {
      await over({ session: jest.fn().mockRejectedValue(GONE) });
      expect(model.get(id(1))).toBeUndefined();
    });

    it("asks for nobody else's that is not wanted any more", async () => {
      const { api } = await over({}, { mine: false, attached: false });
      expect(api.session).not.toHaveBeenCalled();
      expect(model.get(id(1))).toBeUndefined();
    });
  });

  it("forgets another person's session that is there no more, and keeps one that cannot be asked for", async () => {
    const api = fakeAPI({
      sessions: jest.fn(async () => ({ sessions: [], revision: 0 })),
      session: jest
        .fn()
        .mockRejectedValueOnce(new Error('away'))
        .mockRejectedValue(GONE)
    });
    model = await startedModel(api, events);
    model.put(session(1, 'starting', { mine: false }));
    await model.refresh();
    expect(model.get(id(1))).toBeDefined();
    await model.refresh();
    expect(model.get(id(1))).toBeUndefined();
  });

  it('asks for ended sessions only when they are wanted', async () => {
    const api = fakeAPI({
      sessions: jest.fn().mockImplementation(async (state: string) => ({
        sessions: state === 'all' ? [session(1, 'ended')] : [],
        revision: 1
      }))
    });
    model = await startedModel(api, events);
    expect(model.ended).toBeNull();
    model.showEnded = true;
    await settle();
    expect(model.ended?.map(found => found.id)).toEqual([id(1)]);
    expect(model.active).toEqual([]);
  });

  it('asks for no sessions where ClearML is not configured', async () => {
    const api = fakeAPI({
      status: jest.fn().mockResolvedValue({ ...SERVER, mode: 'unconfigured' })
    });
    model = await startedModel(api, events);
    expect(model.loading).toBe(false);
    expect(api.sessions).not.toHaveBeenCalled();
  });

  it('tells why ClearML cannot be asked, and recovers', async () => {
    const sessions = jest
      .fn()
      .mockRejectedValue(
        new SessionError({ code: 'clearml_unreachable', message: 'away' }, 503)
      );
    model = await startedModel(fakeAPI({ sessions }), events);
    expect(model.error?.code).toBe('clearml_unreachable');
    sessions.mockResolvedValue({ sessions: [session(1, 'ready')], revision: 1 });
    await model.refresh();
    expect(model.error).toBeNull();
    expect(model.active).toHaveLength(1);
  });

  it('asks an unreachable server again soon, then more and more seldom', async () => {
    jest.spyOn(Math, 'random').mockReturnValue(0.9);
    jest.useFakeTimers();
    try {
      const status = jest.fn().mockResolvedValue(SERVER);
      model = new SessionModel({ api: fakeAPI({ status }), events: events.stream });
      model.start();
      await jest.advanceTimersByTimeAsync(0);
      const asked: number[] = [];
      status.mockImplementation(async () => {
        asked.push(Date.now());
        throw new Error('away');
      });
      await jest.advanceTimersByTimeAsync(150_000);
      const waits = asked.slice(1).map((time, index) => time - asked[index]);
      expect(waits).toEqual([3_000, 6_000, 12_000, 24_000, 30_000, 30_000]);

      status.mockImplementation(async () => {
        asked.push(Date.now());
        return SERVER;
      });
      await jest.advanceTimersByTimeAsync(60_000);
      expect(asked.slice(-2)[1] - asked.slice(-2)[0]).toBe(30_000);
      expect(model.error).toBeNull();
    } finally {
      jest.useRealTimers();
      jest.restoreAllMocks();
    }
  });

  it('keeps the sessions while ClearML is away', async () => {
    const api = fakeAPI({
      sessions: jest
        .fn()
        .mockResolvedValue({ sessions: [session(1, 'ready')], revision: 1 })
    });
    model = await startedModel(api, events);
    events.emit({
      revision: 2,
      kind: 'backend',
      error: { code: 'clearml_unreachable', message: 'away' }
    });
    expect(model.error?.message).toBe('away');
    expect(model.active).toHaveLength(1);
  });

  it('asks one thing at a time, and once more for what was asked meanwhile', async () => {
    let running = 0;
    let most = 0;
    const api = fakeAPI({
      sessions: jest.fn().mockImplementation(async () => {
        most = Math.max(most, ++running);
        await settle();
        running -= 1;
        return { sessions: [], revision: 1 };
      })
    });
    model = await startedModel(api, events);
    await Promise.all([model.refresh(), model.refresh(), model.refresh()]);
    await settle();
    expect(most).toBe(1);
    expect(api.sessions.mock.calls.length).toBeLessThanOrEqual(4);
  });

  it.each([
    ['showEnded', 'all', false],
    ['allUsers', 'active', true]
  ] as const)(
    'asks anew where %s is set while it is asking',
    async (wish, state, all) => {
      const answer = new PromiseDelegate<unknown>();
      const api = fakeAPI();
      model = await startedModel(api, events);
      api.sessions.mockReturnValueOnce(answer.promise);
      const refreshed = model.refresh();
      await settle();
      model[wish] = true;
      answer.resolve({ sessions: [], revision: 0 });
      await refreshed;
      await settle();
      expect(api.sessions).toHaveBeenLastCalledWith(state, all);
    }
  );

  it('takes a new snapshot for a gap that it finds after a snapshot', async () => {
    const answer = new PromiseDelegate<unknown>();
    const api = fakeAPI();
    model = await startedModel(api, events);
    api.sessions
      .mockReturnValueOnce(answer.promise)
      .mockResolvedValue({ sessions: [session(1, 'ready')], revision: 9 });
    const refreshed = model.refresh();
    await settle();
    events.changed(9, session(1, 'ready'));
    answer.resolve({ sessions: [session(1, 'queued')], revision: 1 });
    await refreshed;
    await settle();
    expect(model.get(id(1))?.phase).toBe('ready');
  });

  describe('where a snapshot is on its way, and no event tells more', () => {
    /** Ask for a snapshot; it is answered when `act` was done, as it was before. */
    async function meanwhile(act: () => void) {
      const old = { sessions: [session(1, 'services_up')], revision: 0 };
      const answer = new PromiseDelegate<unknown>();
      const api = fakeAPI({
        sessions: jest.fn().mockResolvedValue(old),
        session: jest.fn().mockRejectedValue(GONE)
      });
      model = await startedModel(api, events);
      const shown: Array<string | undefined> = [];
      model.changed.connect(() => shown.push(model.get(id(1))?.phase));
      api.sessions.mockReturnValueOnce(answer.promise);
      const refreshed = model.refresh();
      await settle();
      api.sessions.mockResolvedValue({ sessions: [session(3, 'ready')], revision: 0 });
      act();
      answer.resolve(old);
      await refreshed;
      await settle();
      return shown;
    }

    it('keeps what an order has made of a session, until a newer one has come', async () => {
      const shown = await meanwhile(() => model.put(session(1, 'connecting')));
      expect(shown).toEqual(['connecting', 'connecting', undefined]);
      expect(model.active.map(found => found.id)).toEqual([id(3)]);
    });

    it('keeps a new session', async () => {
      const launched: boolean[] = [];
      await meanwhile(() => {
        model.put(session(2, 'queued'));
        model.changed.connect(() => launched.push(Boolean(model.get(id(2)))));
      });
      expect(launched).toEqual([true, false]);
    });

    it('does not bring a deleted one back', async () => {
      const shown = await meanwhile(() => model.remove(id(1)));
      expect(shown).toEqual([undefined, undefined, undefined]);
    });
  });

  it('is quiet after its end', async () => {
    const api = fakeAPI();
    model = await startedModel(api, events);
    const changed = jest.fn();
    model.changed.connect(changed);
    model.dispose();
    events.changed(1, session(1, 'ready'));
    await model.refresh();
    expect(changed).not.toHaveBeenCalled();
    expect(api.sessions).toHaveBeenCalledTimes(1);
  });
});
