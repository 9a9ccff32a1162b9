/** Keeps the keyboard where it was when the control that had the focus goes away. */
import * as React from 'react';

/**
 * Keep the focus in the body of a dialog, which has to be focusable, where the control that has it goes away (with the
 * row that it has closed, say) or is disabled (with what it has begun): the keyboard would not reach the dialog any
 * more.
 */
export function useKeptFocus(body: React.RefObject<HTMLElement>): void {
  React.useEffect(() => {
    const { activeElement } = document;
    // A disabled control is left by the browser a moment later.
    if (activeElement === document.body || activeElement?.matches(':disabled')) {
      body.current?.focus();
    }
  });
}

/**
 * Where a control of a list goes away while it has the focus, move that to the part of the list it was in, or to the
 * list itself where that part is gone too. Both have to be focusable.
 *
 * @param part - selects the parts
 */
export function useFocusNearby(list: React.RefObject<HTMLElement>, part: string): void {
  const last = React.useRef<{ control: Element; part: HTMLElement | null } | null>(
    null
  );
  React.useEffect(() => {
    const note = () => {
      const control = document.activeElement;
      last.current =
        control && list.current?.contains(control)
          ? { control, part: control.closest<HTMLElement>(part) }
          : null;
    };
    document.addEventListener('focusin', note);
    return () => document.removeEventListener('focusin', note);
  }, [list, part]);
  React.useEffect(() => {
    const lost = last.current && !usable(last.current.control);
    if (lost && document.activeElement === document.body) {
      const near = last.current?.part;
      (near?.isConnected ? near : list.current)?.focus();
    }
  });
}

function usable(control: Element): boolean {
  return control.isConnected && !control.matches(':disabled');
}
