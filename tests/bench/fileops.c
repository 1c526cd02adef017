/* File operations of a program in a container, each many times between two marks.
 *
 *   fileops DIR LIBRARY PROGRAM NUMBER [DROP]
 *
 * does the work of this number, from 0; exit code 3 if there is none. DIR/many holds FILES files of 8 KiB, DIR/large is a file of LARGE bytes; LIBRARY is mapped and read; PROGRAM is started. `cold` is what the
 * kernel of the container has not seen since it wrote 3 to DROP (/proc/sys/vm/drop_caches); without DROP it is the first use by this process only.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <spawn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "marks.h"

#define FILES 200
#define TIMES 10
#define PAGE 4096
#define LARGE (16 << 20)

static const char *drop_file;
static int until_ours;
static char names[FILES][128];
static char many[96], large[96], created[96];
static char buffer[1 << 20];
static int descriptors[FILES];
static volatile uint64_t sink;

static int must(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void drop(void)
{
	if (!drop_file)
		return;
	int file = must(open(drop_file, O_WRONLY), drop_file);
	if (write(file, "3", 1) != 1)
		err(1, "%s", drop_file);
	close(file);
}

static void stat_all(void)
{
	struct stat found;
	for (int i = 0; i < FILES; i++)
		must(stat(names[i], &found), names[i]);
}

static void open_close_all(void)
{
	for (int i = 0; i < FILES; i++)
		close(must(open(names[i], O_RDONLY), names[i]));
}

static void open_read_close_all(void)
{
	for (int i = 0; i < FILES; i++) {
		int file = must(open(names[i], O_RDONLY), names[i]);
		if (read(file, buffer, PAGE) != PAGE)
			err(1, "read %s", names[i]);
		close(file);
	}
}

static void open_all(void)
{
	for (int i = 0; i < FILES; i++)
		descriptors[i] = must(open(names[i], O_RDONLY), names[i]);
}

static void close_all(void)
{
	for (int i = 0; i < FILES; i++)
		close(descriptors[i]);
}

static void read_all(void)
{
	for (int i = 0; i < FILES; i++)
		if (pread(descriptors[i], buffer, PAGE, 0) != PAGE)
			err(1, "read %s", names[i]);
}

static void create_unlink_all(void)
{
	for (int i = 0; i < FILES; i++) {
		close(must(open(created, O_CREAT | O_EXCL | O_WRONLY, 0644), created));
		must(unlink(created), created);
	}
}

static void list(void)
{
	int count = 0;
	DIR *directory = opendir(many);
	if (!directory)
		err(1, "%s", many);
	while (readdir(directory))
		count++;
	closedir(directory);
	if (count != FILES + 2)
		errx(1, "%s: %d entries", many, count);
}

static void read_large(void)
{
	int file = must(open(large, O_RDONLY), large);
	for (int i = 0; i < LARGE >> 20; i++)
		if (read(file, buffer, 1 << 20) != 1 << 20)
			err(1, "read %s", large);
	close(file);
}

/* Maps a file anew and reads all its words, or one byte of each page; its size in MiB. */
static double map(const char *path, int words)
{
	struct stat found;
	int file = must(open(path, O_RDONLY), path);
	must(fstat(file, &found), path);
	size_t size = found.st_size & ~(size_t)(PAGE - 1);
	char *bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0);
	if (bytes == MAP_FAILED)
		err(1, "mmap %s", path);
	uint64_t sum = 0;
	if (words)
		for (size_t i = 0; i < size / 8; i++)
			sum += ((volatile uint64_t *)bytes)[i];
	else
		for (size_t i = 0; i < size; i += PAGE)
			sum += ((volatile char *)bytes)[i];
	sink = sum;
	munmap(bytes, size);
	close(file);
	return size / 1048576.0;
}

static void write_synced(int times)
{
	int file = must(open(created, O_CREAT | O_EXCL | O_WRONLY, 0644), created);
	begin_work("write 4 KiB and fsync", times);
	for (int i = 0; i < times; i++)
		if (pwrite(file, buffer, PAGE, i * PAGE) != PAGE || fsync(file) < 0)
			err(1, "%s", created);
	end_work();
	begin_work("write 4 KiB over it", times);
	for (int i = 0; i < times; i++)
		if (pwrite(file, buffer, PAGE, i * PAGE) != PAGE)
			err(1, "%s", created);
	end_work();
	close(file);
	must(unlink(created), created);
}

static void start(const char *program)
{
	char *args[] = {(char *)program, "-c", "pass", NULL}, *environment[] = {"PATH=/usr/bin:/bin", NULL};
	pid_t pid;
	int status;
	if (posix_spawn(&pid, program, NULL, NULL, args, environment) != 0 || waitpid(pid, &status, 0) != pid || status != 0)
		errx(1, "%s", program);
}

/* Whether the work at this place is the one that is asked for. */
static int ours(void)
{
	return until_ours-- == 0;
}

#define COLD(NAME, COUNT, WORK) do { if (ours()) { drop(); begin_work(NAME, COUNT); WORK; end_work(); } } while (0)
#define WARM(NAME, COUNT, WORK) do { if (ours()) { WORK; begin_work(NAME, (COUNT) * TIMES); for (int t = 0; t < TIMES; t++) { WORK; } end_work(); } } while (0)
#define COLD_AND_WARM(NAME, COUNT, WORK) do { COLD(NAME ", cold", COUNT, WORK); WARM(NAME ", warm", COUNT, WORK); } while (0)

int main(int argc, char **argv)
{
	if (argc < 5)
		errx(2, "fileops DIR LIBRARY PROGRAM NUMBER [DROP]");
	const char *library = argv[2];
	double library_mib = map(library, 0);
	until_ours = atoi(argv[4]);
	drop_file = argv[5];
	snprintf(many, sizeof many, "%.64s/many", argv[1]);
	snprintf(large, sizeof large, "%.64s/large", argv[1]);
	snprintf(created, sizeof created, "%.64s/new", argv[1]);
	for (int i = 0; i < FILES; i++)
		snprintf(names[i], sizeof names[i], "%s/%03d", many, i);
	memset(buffer, 1, sizeof buffer);

	COLD_AND_WARM("stat", FILES, stat_all());
	COLD_AND_WARM("open and close", FILES, open_close_all());
	COLD_AND_WARM("open, read 4 KiB and close", FILES, open_read_close_all());
	drop();
	open_all();
	COLD("read 4 KiB, cold", FILES, read_all());
	WARM("read 4 KiB, warm", FILES, read_all());
	close_all();
	COLD("create, close and unlink", FILES, create_unlink_all());
	COLD_AND_WARM("list 200 files", 1, list());
	COLD_AND_WARM("read a MiB in sequence", LARGE >> 20, read_large());
	COLD_AND_WARM("map a library and read it all, per MiB", library_mib, map(library, 1));
	COLD_AND_WARM("map a library and touch its pages, per MiB", library_mib, map(library, 0));
	if (ours())
		write_synced(FILES);
	COLD_AND_WARM("start python3", 1, start(argv[3]));
	if (until_ours >= 0)
		return 3;
	print_marks();
	return 0;
}
