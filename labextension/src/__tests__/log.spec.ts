import { Widget } from '@lumino/widgets';

import { LogView } from '../log';
import type { ILogLine, Phase } from '../tokens';
import { fakeAPI, id, session, startedModel, trans } from './parts';

/** Lines with their number as text, a millisecond apart. */
function written(count: number): ILogLine[] {
  return [...Array(count).keys()].map(number => ({
    time: new Date(number).toISOString(),
    text: String(number)
  }));
}

describe('LogView', () => {
  const views: LogView[] = [];

  afterEach(() => {
    views.splice(0).forEach(view => view.dispose());
    jest.useRealTimers();
  });

  /** The log of a session, after its first look. */
  async function opened(count: number, phase: Phase = 'ready') {
    let lines = written(count);
    const log = jest.fn(async (_: string, limit: number, before?: string) =>
      lines.filter(line => !before || line.time < before).slice(-limit)
    );
    const sessions = { sessions: [session(1, phase)], revision: 1 };
    const model = await startedModel(
      fakeAPI({ log, sessions: jest.fn().mockResolvedValue(sessions) })
    );
    jest.useFakeTimers();
    const view = new LogView(model, id(1), trans);
    views.push(view);
    Widget.attach(view, document.body);
    const look = () => jest.advanceTimersByTimeAsync(2_000);
    await look();
    return {
      log,
      look,
      write: (more: number) => (lines = written(lines.length + more)),
      status: () => view.node.querySelector('[role=status]')?.textContent,
      shown: () => (view.node.querySelector('pre')?.textContent ?? '').split('\n'),
      earlier: () =>
        [...view.node.querySelectorAll('button')].find(
          button => button.textContent === 'Earlier Lines'
        ) as HTMLButtonElement
    };
  }

  function numbers(from: number, to: number): string[] {
    return written(to)
      .slice(from)
      .map(line => line.text);
  }

  it('adds what is new', async () => {
    const { look, log, write, shown } = await opened(10);
    write(5);
    await look();
    expect(shown()).toEqual(numbers(0, 15));
    expect(log.mock.calls.every(([, limit]) => limit === 500)).toBe(true);
  });

  it('misses none of the lines that came between two looks', async () => {
    const { look, write, shown } = await opened(10);
    write(1_200);
    await look();
    expect(shown()).toEqual(numbers(0, 1_210));
  });

  it('leaves earlier lines to be fetched where too many came to be joined', async () => {
    const { look, write, shown, earlier } = await opened(10);
    earlier().click(); // there are none
    await look();
    expect(earlier().disabled).toBe(true);
    write(5_200);
    await look();
    expect(shown()).toEqual(numbers(210, 5_210));
    expect(earlier().disabled).toBe(false);
    earlier().click();
    await look();
    expect(shown()).toEqual(numbers(0, 5_210));
  });

  it('tells a failure to go back no longer than until it works, also of a session that is over', async () => {
    const { look, log, status, shown, earlier } = await opened(800, 'ended');
    log.mockRejectedValueOnce(new Error('away'));
    earlier().click();
    await look();
    expect(status()).toBe('away');
    earlier().click();
    await look();
    expect(status()).toBe('');
    expect(shown()).toEqual(numbers(0, 800));
  });

  it('can go back also where it was opened before anything was written', async () => {
    const { look, write, shown, earlier } = await opened(0);
    write(800);
    await look();
    expect(shown()).toEqual(numbers(300, 800));
    earlier().click();
    await look();
    expect(shown()).toEqual(numbers(0, 800));
  });
});
