import { act, cleanup, render, screen } from '@testing-library/react';
import * as React from 'react';

import { Load, rows } from '../load';
import type { IMetrics } from '../tokens';
import { fakeAPI, id, trans } from './parts';

const GIGABYTE = 1024 ** 3;
const LOAD: IMetrics = {
  cpu_percent: 12.5,
  cpu_count: 8,
  memory: { used: 4 * GIGABYTE, total: 16 * GIGABYTE },
  disk: { used: 50 * GIGABYTE, total: 100 * GIGABYTE, free: 50 * GIGABYTE },
  gpus: [
    {
      index: 0,
      name: 'A100',
      utilization_percent: 87,
      memory_used_mb: 20_480,
      memory_total_mb: 40_960,
      temperature_c: 61
    }
  ],
  idle_s: 300
};

afterEach(() => {
  cleanup();
  jest.useRealTimers();
});

describe('rows', () => {
  it('tell processor, memory, disk, graphics processors and idleness', () => {
    expect(rows(LOAD, trans)).toEqual([
      { name: 'Processor', text: '13% of 8 cores', fraction: 0.125 },
      { name: 'Memory', text: '4 GB of 16 GB', fraction: 0.25 },
      { name: 'Disk', text: '50 GB of 100 GB', fraction: 0.5 },
      { name: 'GPU 0', text: 'A100 · 87% · 20 GB of 40 GB · 61 °C', fraction: 0.87 },
      { name: 'Last active', text: '5 minutes ago' }
    ]);
  });

  it('leave out what the machine does not tell', () => {
    const [gpu] = LOAD.gpus;
    const silent = { ...gpu, utilization_percent: '[N/A]', temperature_c: '[N/A]' };
    const little = { ...LOAD, memory: {}, gpus: [silent], idle_s: 2 };
    expect(rows(little, trans).map(row => row.text)).toEqual([
      '13% of 8 cores',
      '50 GB of 100 GB',
      'A100 · 20 GB of 40 GB',
      'just now'
    ]);
  });
});

describe('Load', () => {
  const offsetParent = jest.spyOn(HTMLElement.prototype, 'offsetParent', 'get');

  /** As browsers do: what is hidden, or in something hidden, has none. */
  function putInSight(inSight: boolean) {
    offsetParent.mockImplementation(function (this: HTMLElement) {
      return inSight && !this.closest('[hidden]') ? document.body : null;
    });
  }

  async function shown(metrics: jest.Mock) {
    jest.useFakeTimers();
    render(
      <dl>
        <Load api={fakeAPI({ metrics })} sessionId={id(1)} trans={trans} />
      </dl>
    );
    await act(() => jest.advanceTimersByTimeAsync(100));
  }

  it('is asked for again and again while it is in sight', async () => {
    putInSight(true);
    const metrics = jest.fn().mockResolvedValue(LOAD);
    await shown(metrics);
    expect(metrics.mock.calls[0][0]).toBe(id(1));
    expect(screen.getByRole('meter', { name: 'Memory' })).toBeTruthy();
    metrics.mockResolvedValue({ ...LOAD, cpu_percent: 50 });
    await act(() => jest.advanceTimersByTimeAsync(5_000));
    expect(screen.getByText('50% of 8 cores')).toBeTruthy();
  });

  it('is not asked for out of sight', async () => {
    putInSight(false);
    const metrics = jest.fn().mockResolvedValue(LOAD);
    await shown(metrics);
    expect(metrics).not.toHaveBeenCalled();
  });

  it('says why it cannot be told', async () => {
    putInSight(true);
    await shown(jest.fn().mockRejectedValue(new Error('No connection')));
    expect(screen.getByText('No connection')).toBeTruthy();
  });
});
