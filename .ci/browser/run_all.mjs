// node run_all.mjs SERVER TOKEN NOTEBOOK FILE PICTURE MINUTES
// Opens NOTEBOOK in the JupyterLab at SERVER, chooses Run > Run All Cells, waits until all is quiet, and saves (FILE is where it lands on disk).
// The last line on stdout is JSON: seconds, errors shown on the page, and `failed` where it could not be done. Progress goes to stderr.
import { chromium } from 'playwright-core';
import fs from 'node:fs';

const [server, token, notebook, file, picture, minutes] = process.argv.slice(2);
const limit = 60000 * minutes, result = {seconds: null, shown: []};
const sleep = ms => new Promise(done => setTimeout(done, ms));
let told = 0;
const tell = (line, every = 20000) => {
  if (process.stderr.isTTY) process.stderr.write(`\r${line}\x1b[K`);
  else if (Date.now() - told > every) { told = Date.now(); process.stderr.write(line + '\n'); }
};

// The browser sees one server only, our own on this machine; containers and CI have no user namespaces for its sandbox.
const browser = await chromium.launch({executablePath: process.env.CHROMIUM, timeout: limit,
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-networking']});
const page = await browser.newPage({viewport: {width: 1400, height: 1000}});
page.setDefaultTimeout(limit);

const look = () => page.evaluate(() => {
  const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(p => p.textContent);
  return {idle: /\| Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText || ''), all: prompts.length,
    waiting: prompts.filter(p => p.includes('*')).length, done: prompts.filter(p => /\[\d+\]/.test(p)).length};
});
const choose = async (menu, item) => {
  await page.click(`.lm-MenuBar-itemLabel:text-is("${menu}")`);
  await page.click(`.lm-Menu-itemLabel:text-is("${item}")`);
};
// `quiet` in a row, since the kernel is idle for a moment between any two cells.
const settle = async (ready, quiet, line) => {
  for (let n = 0, began = Date.now(); n < quiet; await sleep(500)) {
    const now = await look();
    n = ready(now) ? n + 1 : 0;
    const seconds = Math.round((Date.now() - began) / 1000);
    tell(`${notebook}  ${line(now)}  ${seconds} s`);
    if (Date.now() - began > limit) throw Error(`still not done after ${minutes} minutes (${now.done} of ${now.all} cells)`);
  }
};

try {
  await page.goto(`${server}/lab/workspaces/run-all/tree/${notebook}?reset&token=${token}`);
  await page.waitForSelector('.jp-Notebook .jp-Cell');
  await settle(now => now.idle, 4, () => 'starting its kernel');
  const began = Date.now();
  for (let tries = 0, running = false; !running; tries++) {   // a menu that is opened while the page still settles may close again unused
    if (tries === 3) throw Error('Run All Cells started nothing');
    await choose('Run', 'Run All Cells');
    for (let i = 0; i < 60 && !running; i++) { await sleep(500); const now = await look(); running = now.waiting + now.done > 0; }
  }
  await settle(now => now.idle && now.waiting === 0, 6, now => `${now.done}/${now.all} cells`);
  result.seconds = Math.round((Date.now() - began) / 1000);
  result.shown = await page.$$eval('[data-mime-type="application/vnd.jupyter.error"]', found => found.map(x => x.innerText.trim().split('\n').pop()));
  const before = fs.statSync(file).mtimeMs;
  await choose('File', 'Save Notebook');
  for (let i = 0; fs.statSync(file).mtimeMs === before; i++) { if (i > 240) throw Error('the executed notebook was not saved'); await sleep(500); }
} catch (e) {
  result.failed = e.message.split('\n')[0];
}
if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
if (result.failed || result.shown.length) await page.screenshot({path: picture}).catch(() => {});
await browser.close();
console.log(JSON.stringify(result));
