// @ts-check
// The one connection of this browser: a shared worker that passes the stream on to every tab.
// It belongs to a version of the pages, since its address has the hash of all files.
import { Stream } from "./live-stream.js";

/** The tabs, and the runs whose curves each shows.
 * @type {Map<MessagePort, string[]>} */
const ports = new Map();
const stream = new Stream((message) => {
  for (const port of ports.keys()) port.postMessage(message);
});

/** @param {MessageEvent} connection */
function connect(connection) {
  const port = connection.ports[0];
  port.onmessage = ({ data }) => {
    if (data === "leave") ports.delete(port);
    else ports.set(port, data.watch);
    if (ports.size) stream.open([...ports.values()].flat());
    else stream.close();
  };
  port.postMessage(stream.state);
}

/** @type {any} */ (self).onconnect = connect;
