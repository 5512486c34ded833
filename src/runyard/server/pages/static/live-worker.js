// @ts-check
// The one connection of this browser: a shared worker that passes the stream on to every tab.
// It belongs to a version of the pages, since its address has the hash of all files.
import { Stream } from "./live-stream.js";

/** @type {Set<MessagePort>} */
const ports = new Set();
const stream = new Stream((message) => {
  for (const port of ports) port.postMessage(message);
});

/** @param {MessageEvent} connection */
function connect(connection) {
  const port = connection.ports[0];
  ports.add(port);
  port.onmessage = ({ data }) => {
    if (data === "leave") ports.delete(port);
    if (!ports.size) stream.close();
  };
  stream.open();
  port.postMessage(stream.state);
}

/** @type {any} */ (self).onconnect = connect;
