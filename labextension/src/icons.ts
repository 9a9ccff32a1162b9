/** The icons of this extension. */
import { LabIcon } from '@jupyterlab/ui-components';

import sessionSvg from '../style/icons/session.svg';
import vscodeSvg from '../style/icons/code.svg';

/** A cloud with a start button: a session. */
export const sessionIcon = new LabIcon({
  name: 'clearml-session:session',
  svgstr: sessionSvg
});

/** Angle brackets: the editor in the browser. */
export const editorIcon = new LabIcon({
  name: 'clearml-session:editor',
  svgstr: vscodeSvg
});
