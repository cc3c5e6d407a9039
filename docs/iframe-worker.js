// Search runs in a worker, which browsers refuse to a page that was opened from
// a folder. There it runs in a hidden frame, which looks like one.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement('iframe');
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      // What the script posts comes out here.
      this.inside.postMessage = (data) => this.tell(this, data);
      this.inside.importScripts = (...urls) =>
        Promise.all(urls.map((each) => this.load(each)));
      this.ready = this.load(url);
    }

    load(url) {
      const script = this.inside.document.createElement('script');
      script.src = url;
      return new Promise((done, failed) => {
        script.onload = done;
        script.onerror = failed;
        this.inside.document.head.append(script);
      });
    }

    tell(target, data) {
      target.dispatchEvent(new MessageEvent('message', {data}));
    }

    postMessage(data) {
      this.ready.then(() => this.tell(this.inside, data));
    }
  };
}
