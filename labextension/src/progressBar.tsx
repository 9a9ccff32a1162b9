/** The bar that shows how far something is. */
import * as React from 'react';

/** A bar with a name and, for who cannot see it, the words that stand beside it. */
export function ProgressBar(props: {
  name: string;
  percent: number;
  text: string;
}): JSX.Element {
  const { name, percent, text } = props;
  return (
    <div
      role="progressbar"
      aria-label={name}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={percent}
      aria-valuetext={text}
      className="jp-ClearML-bar"
    >
      <div style={{ width: `${percent}%` }} />
    </div>
  );
}
