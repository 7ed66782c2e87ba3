// What the reader has chosen, shared by all sections.

/**
 * A choice that can be watched.
 * @param {Object<string, *>} values the first values, by key.
 */
export function makeStore(values) {
  const watchers = new Set();

  function tell(changed) {
    for (const watcher of [...watchers]) {
      if (watcher.keys.some((key) => changed.has(key))) watcher.run();
    }
  }

  return {
    get: (key) => values[key],

    /** Sets several keys at once; those who watch one of them are told once, if a value is new. */
    set(changes) {
      const changed = new Set(Object.keys(changes).filter((key) => !Object.is(values[key], changes[key])));
      Object.assign(values, changes);
      if (changed.size) tell(changed);
    },

    /** Calls `run` now, and again whenever one of the keys changes; returns a function that ends this. */
    watch(keys, run) {
      const watcher = { keys, run };
      watchers.add(watcher);
      run();
      return () => watchers.delete(watcher);
    },
  };
}
